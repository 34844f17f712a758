"""The native CPU kernel's launchers.

fp64, and all where there is no library, runs the reference; strides other than the two memory formats are made dense.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastcond.ops import native
from fastcond.ops.ada_group_norm import layout, reference

# The numbers of kernels/include/fastcond/simd.h's Stored.
STORED = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


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
    batch = _check(x, scale, shift, weight, bias, num_groups)
    if native.native is None or x.dtype not in STORED or x.numel() == 0:
        return reference.forward(x, scale, shift, weight, bias, num_groups, eps, silu)
    channels_last = layout.channels_last(x)
    if channels_last is None:
        y, mean, rstd = forward(layout.dense(x), scale, shift, weight, bias, num_groups, eps, silu)
        return torch.empty_like(x).copy_(y), mean, rstd
    mean = torch.empty((2, batch, num_groups), dtype=torch.float32, device="cpu")
    rstd = torch.empty((batch, num_groups), dtype=torch.float32, device="cpu")
    y = normalise(x, channels_last, (scale, shift, weight, bias), num_groups, eps, silu, (mean.data_ptr(), rstd.data_ptr()))
    return y, mean, rstd


def normalise(
    x: Tensor,
    channels_last: bool,
    operands: tuple[Tensor | None, ...],
    num_groups: int,
    eps: float,
    silu: bool,
    statistics: tuple[int, int] = (0, 0),
) -> Tensor:
    """y of an x in the one memory format or the other; mean and rstd are written to their addresses, but to 0."""
    y = torch.empty_like(x)
    operands = tuple(map(_operand, operands))
    call = _call(x, operands, num_groups, silu, channels_last)
    native.native.ada_group_norm(*call, eps, y.data_ptr(), *statistics)  # type: ignore[union-attr]
    return y


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
    batch = _check(x, scale, shift, weight, bias, num_groups)
    if dy.shape != x.shape or mean.shape != (2, batch, num_groups) or rstd.shape != (batch, num_groups):
        raise ValueError(f"dy, mean, rstd are {list(dy.shape)}, {list(mean.shape)}, {list(rstd.shape)} for x {list(x.shape)}")
    if native.native is None or x.dtype not in STORED or x.numel() == 0:
        return reference.backward(dy, x, scale, shift, weight, bias, mean, rstd, num_groups, silu, needed)
    channels_last = layout.channels_last(x)
    if channels_last is None:
        wide = backward(dy, layout.dense(x), scale, shift, weight, bias, mean, rstd, num_groups, silu, needed)
        return torch.empty_like(x).copy_(wide[0]) if needed[0] else wide[0], wide[1], wide[2], wide[3], wide[4]
    mean, rstd = mean.float().contiguous(), rstd.float().contiguous()
    statistics = mean.data_ptr(), rstd.data_ptr()
    gradients = differentiate(dy, x, channels_last, (scale, shift, weight, bias), statistics, num_groups, silu, needed)
    dx, dscale, dshift, dweight, dbias = (x.new_empty(0) if gradient is None else gradient for gradient in gradients)
    return dx, dscale, dshift, dweight, dbias


def differentiate(
    dy: Tensor,
    x: Tensor,
    channels_last: bool,
    operands: tuple[Tensor | None, ...],
    statistics: tuple[int, int],
    num_groups: int,
    silu: bool,
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of x and of each operand, None where not needed, of an x in the one memory format or the other.

    statistics: the addresses of mean and rstd.
    """
    dx = torch.empty_like(x)
    if dy.dtype != x.dtype or dy.stride() != x.stride():
        # A gradient may come in the other memory format or in another dtype.
        dy = torch.empty_like(x).copy_(dy)
    gradients = [_room(operand) if need else None for operand, need in zip(operands, needed[1:], strict=True)]
    wide = tuple(map(_operand, operands))
    call = _call(x, wide, num_groups, silu, channels_last)
    addresses = (dy.data_ptr(), *statistics, dx.data_ptr(), tuple(map(_address, gradients)))
    native.native.ada_group_norm_backward(*call, *addresses)  # type: ignore[union-attr]
    for i, operand in enumerate(operands):
        gradient = gradients[i]
        if gradient is not None and operand is not None and operand.dtype != torch.float32:
            gradients[i] = gradient.to(operand.dtype)
    return [dx if needed[0] else None, *gradients]


def _check(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, weight: Tensor | None, bias: Tensor | None, num_groups: int
) -> int:
    """The kernel reads addresses: what it is given must be as large as it believes, whoever calls the op. Returns B."""
    shape = x.shape
    if len(shape) < 2 or num_groups < 1 or shape[1] % num_groups:
        raise ValueError(f"x is {list(shape)} in {num_groups} groups; [B, C, *] with C a multiple of the groups is needed")
    of_image, of_channel = shape[:2], shape[1:2]
    for value, needed in ((scale, of_image), (shift, of_image), (weight, of_channel), (bias, of_channel)):
        if value is not None and value.shape != needed:
            raise ValueError(f"an operand of ada_group_norm is {list(value.shape)}; {list(needed)} is needed")
    return shape[0]


def _operand(value: Tensor | None) -> Tensor | None:
    """float32, channels one after another; a float32 chunk of a larger tensor is taken as it lies."""
    if value is None or (value.dtype is torch.float32 and (value.is_contiguous() or value.stride(-1) == 1)):
        return value
    return value.float().contiguous()


def _room(operand: Tensor | None) -> Tensor | None:
    """For the gradient of an operand, float32. (torch.empty takes twice as long to read a shape.)"""
    if operand is None:
        return None
    if operand.dtype is torch.float32:
        return torch.empty_like(operand, memory_format=torch.contiguous_format)
    return torch.empty_like(operand, dtype=torch.float32, memory_format=torch.contiguous_format)


def _address(value: Tensor | None) -> int:
    return 0 if value is None else value.data_ptr()


def _call(
    x: Tensor, operands: tuple[Tensor | None, ...], num_groups: int, silu: bool, channels_last: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The two rows of numbers that kernels/bindings.cpp's norm_call reads."""
    scale, shift, weight, bias = operands
    shape = x.shape
    batch, channels = shape[0], shape[1]
    tensors = (x.data_ptr(), _address(scale), _address(shift), _address(weight), _address(bias))
    return tensors, (
        0 if scale is None else scale.stride(0),
        0 if shift is None else shift.stride(0),
        batch,
        channels,
        num_groups,
        x.numel() // (batch * channels),
        silu,
        # Without positions channels are neighbours, which is what channels_last is fast at.
        channels_last or len(shape) == 2,
        STORED[x.dtype],
        torch.get_num_threads(),
    )
