"""The native CPU kernel's launchers.

fp16 is widened for the kernel and other strides are made dense; fp64, and all where there is no library, runs the reference.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastcond.ops import native
from fastcond.ops.ada_group_norm import reference


def forward(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    eps: float,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """`reference.forward`, natively where the kernel takes x."""
    _check(x, scale, shift, weight, bias, num_groups)
    if x.dtype == torch.float16 and native.native is not None:
        y, mean, rstd = forward(x.float(), scale, shift, weight, bias, num_groups, eps, silu)
        return y.half(), mean, rstd
    library = native.native
    if library is None or x.dtype == torch.float64 or x.numel() == 0:
        return reference.forward(x, scale, shift, weight, bias, num_groups, eps, silu)
    layout = _layout(x)
    if layout is None:
        y, mean, rstd = forward(_dense(x), scale, shift, weight, bias, num_groups, eps, silu)
        return torch.empty_like(x).copy_(y), mean, rstd
    operands = _operands(scale, shift, weight, bias)
    y = torch.empty_like(x)
    mean = torch.empty((2, x.shape[0], num_groups))
    rstd = torch.empty((x.shape[0], num_groups))
    tensors, numbers = _call(x, operands, num_groups, silu, layout)
    library.ada_group_norm(tensors, numbers, eps, y.data_ptr(), mean.data_ptr(), rstd.data_ptr())
    return y, mean, rstd


def backward(
    dy: Tensor,
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    num_groups: int,
    silu: bool,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`reference.backward`, natively where the kernel takes x."""
    _check(x, scale, shift, weight, bias, num_groups)
    statistics = (x.shape[0], num_groups)
    if dy.shape != x.shape or mean.shape != (2, *statistics) or rstd.shape != statistics:
        raise ValueError(f"dy, mean, rstd are {list(dy.shape)}, {list(mean.shape)}, {list(rstd.shape)} for x {list(x.shape)}")
    if x.dtype == torch.float16 and native.native is not None:
        wide = backward(dy, x.float(), scale, shift, weight, bias, mean, rstd, num_groups, silu, needed)
        return wide[0].half(), wide[1], wide[2], wide[3], wide[4]
    library = native.native
    if library is None or x.dtype == torch.float64 or x.numel() == 0:
        return reference.backward(dy, x, scale, shift, weight, bias, mean, rstd, num_groups, silu, needed)
    layout = _layout(x)
    if layout is None:
        wide = backward(dy, _dense(x), scale, shift, weight, bias, mean, rstd, num_groups, silu, needed)
        return torch.empty_like(x).copy_(wide[0]) if needed[0] else wide[0], wide[1], wide[2], wide[3], wide[4]
    operands = _operands(scale, shift, weight, bias)
    dx = torch.empty_like(x)
    # A gradient may come in the other memory format or in another dtype.
    dy = torch.empty_like(x).copy_(dy) if dy.dtype != x.dtype or dy.stride() != x.stride() else dy
    A = torch.empty((x.shape[0], x.shape[1]))
    B = torch.empty_like(A)
    tensors, numbers = _call(x, operands, num_groups, silu, layout)
    mean, rstd = mean.float().contiguous(), rstd.float().contiguous()
    addresses = (dy.data_ptr(), mean.data_ptr(), rstd.data_ptr(), dx.data_ptr(), A.data_ptr(), B.data_ptr())
    library.ada_group_norm_backward(tensors, numbers, *addresses)
    return dx if needed[0] else x.new_empty(0), *reference.operand_gradients(A, B, scale, shift, weight, bias, needed)


def _check(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, weight: Tensor | None, bias: Tensor | None, num_groups: int
) -> None:
    """The kernel reads addresses: what it is given must be as large as it believes, whoever calls the op."""
    if x.dim() < 2 or num_groups < 1 or x.shape[1] % num_groups:
        raise ValueError(f"x is {list(x.shape)} in {num_groups} groups; [B, C, *] with C a multiple of the groups is needed")
    for value, shape in ((scale, x.shape[:2]), (shift, x.shape[:2]), (weight, x.shape[1:2]), (bias, x.shape[1:2])):
        if value is not None and value.shape != shape:
            raise ValueError(f"an operand of ada_group_norm is {list(value.shape)}; {list(shape)} is needed")


def _layout(x: Tensor) -> str | None:
    """How the kernel would walk x: "contiguous", "channels_last", or None where it would not."""
    if x.is_contiguous():
        return "contiguous"
    return "channels_last" if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) else None


def _dense(x: Tensor) -> Tensor:
    """x in the layout that its images have by themselves, so that an image has the same bits in any batch."""
    last = x.dim() == 4 and x.shape[1] > 1 and x.stride(1) == 1
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _operands(*operands: Tensor | None) -> list[Tensor | None]:
    """float32, channels one after another; a float32 chunk of a larger tensor is taken as it lies."""
    return [
        value if value is None or (value.dtype == torch.float32 and value.stride(-1) == 1) else value.float().contiguous()
        for value in operands
    ]


def _call(x: Tensor, operands: list[Tensor | None], num_groups: int, silu: bool, layout: str) -> tuple[list[int], list[int]]:
    """The two lists that kernels/bindings.cpp's norm_call reads."""
    scale, shift = operands[:2]
    batch, channels = x.shape[:2]
    numbers: list[Any] = [
        0 if scale is None else scale.stride(0),
        0 if shift is None else shift.stride(0),
        batch,
        channels,
        num_groups,
        x.numel() // (batch * channels),
        silu,
        layout == "channels_last",
        x.dtype == torch.bfloat16,
        torch.get_num_threads(),
    ]
    return [x.data_ptr(), *(0 if value is None else value.data_ptr() for value in operands)], [int(n) for n in numbers]
