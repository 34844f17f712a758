"""The native CPU kernel's launchers.

fp64, and all where there is no library, runs the reference; strides other than the two memory formats are made dense.
"""

from __future__ import annotations

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
    mean, rstd = statistics(batch, num_groups)
    return normalise(x, channels_last, (scale, shift, weight, bias), num_groups, eps, silu, mean, rstd), mean, rstd


def statistics(batch: int, num_groups: int) -> tuple[Tensor, Tensor]:
    """Room for mean [2, B, G] and rstd [B, G]."""
    return torch.empty((2, batch, num_groups), device="cpu"), torch.empty((batch, num_groups), device="cpu")


def normalise(
    x: Tensor,
    channels_last: bool,
    operands: tuple[Tensor | None, ...],
    num_groups: int,
    eps: float,
    silu: bool,
    mean: Tensor | None,
    rstd: Tensor | None,
) -> Tensor:
    """y of an x in the one memory format or the other; mean and rstd are written where they are wanted."""
    y = torch.empty_like(x)
    operands = tuple(map(_operand, operands))
    tensors, numbers = _call(x, operands, num_groups, silu, channels_last)
    kept = (_address(mean), _address(rstd))
    native.native.ada_group_norm(tensors, numbers, eps, y.data_ptr(), *kept)  # type: ignore[union-attr]
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
    gradients = differentiate(dy, x, channels_last, (scale, shift, weight, bias), mean, rstd, num_groups, silu, needed)
    dx, dscale, dshift, dweight, dbias = (x.new_empty(0) if gradient is None else gradient for gradient in gradients)
    return dx, dscale, dshift, dweight, dbias


def differentiate(
    dy: Tensor,
    x: Tensor,
    channels_last: bool,
    operands: tuple[Tensor | None, ...],
    mean: Tensor,
    rstd: Tensor,
    num_groups: int,
    silu: bool,
    needed: list[bool],
) -> list[Tensor | None]:
    """Gradients of x and of each operand, None where not needed, of an x in the one memory format or the other."""
    dx = torch.empty_like(x)
    if dy.dtype != x.dtype or dy.stride() != x.stride():
        # A gradient may come in the other memory format or in another dtype.
        dy = torch.empty_like(x).copy_(dy)
    gradients: list[Tensor | None] = [
        torch.empty(operand.shape, device="cpu") if need and operand is not None else None
        for operand, need in zip(operands, needed[1:], strict=True)
    ]
    wide = tuple(map(_operand, operands))
    tensors, numbers = _call(x, wide, num_groups, silu, channels_last)
    addresses = (dy.data_ptr(), mean.data_ptr(), rstd.data_ptr(), dx.data_ptr(), list(map(_address, gradients)))
    native.native.ada_group_norm_backward(tensors, numbers, *addresses)  # type: ignore[union-attr]
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
    if value is None or (value.dtype == torch.float32 and value.stride(-1) == 1):
        return value
    return value.float().contiguous()


def _address(value: Tensor | None) -> int:
    return 0 if value is None else value.data_ptr()


def _call(
    x: Tensor, operands: tuple[Tensor | None, ...], num_groups: int, silu: bool, channels_last: bool
) -> tuple[list[int], list[int]]:
    """The two lists that kernels/bindings.cpp's norm_call reads."""
    scale, shift, weight, bias = operands
    batch, channels = x.shape[:2]
    tensors = [x.data_ptr(), _address(scale), _address(shift), _address(weight), _address(bias)]
    numbers = [
        0 if scale is None else scale.stride(0),
        0 if shift is None else shift.stride(0),
        batch,
        channels,
        num_groups,
        x.numel() // (batch * channels),
        int(silu),
        # Without positions channels are neighbours, which is what channels_last is fast at.
        int(channels_last or x.dim() == 2),
        STORED[x.dtype],
        torch.get_num_threads(),
    ]
    return tensors, numbers
