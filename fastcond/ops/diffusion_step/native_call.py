"""What the native kernels of the CPU and of CUDA are told about a call: addresses and sizes, checked here.

Outputs of the network in another layout or dtype than the kernels read are copied first.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# The numbers of kernels/include/fastcond/simd.h's Stored.
_STORED = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class Call(NamedTuple):
    """The two lists that kernels/bindings.cpp's step_call reads, and the tensors whose addresses are among them."""

    tensors: list[int]
    numbers: list[int]
    kept: tuple[Tensor | None, ...]


def native_call(
    x: Tensor,
    out_cond: Tensor,
    out_uncond: Tensor | None,
    history: Tensor | None,
    coefficients: Tensor,
    row: Tensor,
    guidance: Tensor | None,
    seeds: Tensor,
    draws_noise: bool,
    x_next: Tensor,
    x_0: Tensor,
) -> Call | None:
    """The arguments of `reference.step_into` for a kernel, or None where x and the results are not in one memory format."""
    halves = _check(x, out_cond, out_uncond, history, coefficients, row, guidance, seeds, x_next, x_0)
    memory_format = _memory_format(x, x_next, x_0)
    if memory_format is None or x.numel() == 0:
        return None
    stored = out_cond.dtype
    if stored not in _STORED or (out_uncond is not None and out_uncond.dtype != stored):
        stored = torch.float32
    if memory_format == torch.contiguous_format:
        channels_last, channels = 0, 1
    else:
        channels_last, channels = 1, x.shape[1]
    kept = (
        x,
        _readable(out_cond, stored, memory_format),
        None if out_uncond is None else _readable(out_uncond, stored, memory_format),
        None if history is None else _readable(history, torch.float32, memory_format),
        coefficients.contiguous(),
        row,
        None if guidance is None else guidance.contiguous(),
        seeds.contiguous(),
        x_next,
        x_0,
    )
    batch = x.shape[0]
    numbers = [
        batch,
        channels,
        x.numel() // (batch * channels),
        coefficients.shape[0],
        halves,
        channels_last,
        int(draws_noise),
        _STORED[stored],
    ]
    return Call([0 if value is None else value.data_ptr() for value in kept], numbers, kept)


def _check(
    x: Tensor,
    out_cond: Tensor,
    out_uncond: Tensor | None,
    history: Tensor | None,
    coefficients: Tensor,
    row: Tensor,
    guidance: Tensor | None,
    seeds: Tensor,
    x_next: Tensor,
    x_0: Tensor,
) -> int:
    """The kernel reads addresses: what it is given must be as large as it believes, whoever calls the op. Returns halves."""
    shape, float32 = x.shape, torch.float32
    for value in (out_cond, out_uncond, history, x_0):
        if value is not None and value.shape != shape:
            raise ValueError(f"an operand of diffusion_step is {list(value.shape)}; x's shape {list(shape)} is needed")
    for value in (x, history, coefficients, guidance, x_next, x_0):
        if value is not None and value.dtype != float32:
            raise ValueError(f"an operand of diffusion_step is {value.dtype} {list(value.shape)}; float32 is needed")
    batch = shape[0] if shape else 0
    halves = 1 if x_next.shape == shape else 2
    if halves == 2 and x_next.shape != (2 * batch, *shape[1:]):
        raise ValueError(f"x_next is {list(x_next.shape)}; x's shape {list(shape)} or twice its batch is needed")
    if coefficients.dim() != 2 or coefficients.shape[1] != 8 or row.dtype != torch.int64 or row.numel() != 1:
        raise ValueError(f"coefficients, row are {list(coefficients.shape)}, {list(row.shape)}; [N, 8] and int64 [1] are needed")
    if seeds.dtype != torch.int64 or seeds.shape != (batch, 2):
        raise ValueError(f"seeds is {seeds.dtype} {list(seeds.shape)}; int64 [{batch}, 2] is needed")
    if out_uncond is not None and (guidance is None or guidance.shape != (batch,)):
        raise ValueError(f"guided steps carry their scale: float32 [{batch}] is needed")
    return halves


def _memory_format(*tensors: Tensor) -> torch.memory_format | None:
    """The memory format that all of them are in, or None."""
    for memory_format in (torch.contiguous_format, torch.channels_last):
        for tensor in tensors:
            # Only four dimensions may be asked about channels_last, and all tensors have as many.
            if (tensor.dim() != 4 and memory_format is torch.channels_last) or not tensor.is_contiguous(
                memory_format=memory_format
            ):
                break
        else:
            return memory_format
    return None


def _readable(value: Tensor, dtype: torch.dtype, memory_format: torch.memory_format) -> Tensor:
    """`value` itself where it is as wanted."""
    if value.dtype == dtype and value.is_contiguous(memory_format=memory_format):
        return value
    return value.to(dtype).contiguous(memory_format=memory_format)
