"""The native CPU kernel's launchers.

fp64, and all where there is no library, runs the reference; strides other than the two memory formats are made dense.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastcond.ops import native
from fastcond.ops.ada_group_norm import layout, reference

_STORED = (torch.float32, torch.bfloat16, torch.float16)


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
    if native.native is None or x.dtype not in _STORED or x.numel() == 0:
        return reference.forward(x, scale, shift, weight, bias, num_groups, eps, silu)
    if layout.channels_last(x) is None:
        y, mean, rstd = forward(layout.dense(x), scale, shift, weight, bias, num_groups, eps, silu)
        return torch.empty_like(x).copy_(y), mean, rstd
    mean, rstd = native.floats((2, batch, num_groups)), native.floats((batch, num_groups))
    operands = tuple(map(as_taken, (scale, shift, weight, bias)))
    return normalise(x, operands, num_groups, eps, silu, mean, rstd), mean, rstd


def normalise(
    x: Tensor,
    operands: Sequence[Tensor | None],
    num_groups: int,
    eps: float,
    silu: bool,
    mean: Tensor | None = None,
    rstd: Tensor | None = None,
) -> Tensor:
    """y of tensors that the kernel takes. Written where given: mean [2, B, G] and rstd [B, G], or a mean [3, B, G] of both."""
    y, library = torch.empty_like(x), native.native
    assert library is not None
    if not library.ada_group_norm(x, *operands, num_groups, eps, silu, torch.get_num_threads(), y, mean, rstd):
        raise ValueError(_refusal(x))
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
    if native.native is None or x.dtype not in _STORED or x.numel() == 0:
        return reference.backward(dy, x, scale, shift, weight, bias, mean, rstd, num_groups, silu, needed)
    if layout.channels_last(x) is None:
        wide = backward(dy, layout.dense(x), scale, shift, weight, bias, mean, rstd, num_groups, silu, needed)
        return torch.empty_like(x).copy_(wide[0]) if needed[0] else wide[0], wide[1], wide[2], wide[3], wide[4]
    operands = (scale, shift, weight, bias)
    mean, rstd = mean.float().contiguous(), rstd.float().contiguous()
    gradients = differentiate(dy, x, tuple(map(as_taken, operands)), mean, rstd, num_groups, silu, needed)
    if gradients is None:
        raise ValueError(_refusal(x))
    dx, dscale, dshift, dweight, dbias = (
        x.new_empty(0) if gradient is None or operand is None else gradient.to(operand.dtype)
        for gradient, operand in zip(gradients, (x, *operands), strict=True)
    )
    return dx, dscale, dshift, dweight, dbias


def differentiate(
    dy: Tensor,
    x: Tensor,
    operands: Sequence[Tensor | None],
    mean: Tensor,
    rstd: Tensor | None,
    num_groups: int,
    silu: bool,
    needed: Sequence[bool],
) -> list[Tensor | None] | None:
    """Gradients of x and of each operand, None where not needed; None alone where the kernel does not take the tensors.

    mean and rstd as in `normalise`.
    """
    library = native.native
    assert library is not None
    scale, shift, weight, bias = operands
    of_x, of_scale, of_shift, of_weight, of_bias = needed
    dx = torch.empty_like(x)
    dscale = _room(scale) if of_scale else None
    dshift = _room(shift) if of_shift else None
    dweight = _room(weight) if of_weight else None
    dbias = _room(bias) if of_bias else None
    room = (dx, dscale, dshift, dweight, dbias)
    given = (x, scale, shift, weight, bias, mean, rstd, num_groups, silu, torch.get_num_threads(), *room)
    done = library.ada_group_norm_backward(dy, *given)
    if not done and dy.layout is torch.strided:
        # A gradient may come in the other memory format or in another dtype.
        done = library.ada_group_norm_backward(torch.empty_like(x).copy_(dy), *given)
    return [dx if of_x else None, dscale, dshift, dweight, dbias] if done else None


def _check(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, weight: Tensor | None, bias: Tensor | None, num_groups: int
) -> int:
    """Whoever calls the op is told what does not fit. Returns B."""
    shape = x.shape
    if len(shape) < 2 or num_groups < 1 or shape[1] % num_groups:
        raise ValueError(f"x is {list(shape)} in {num_groups} groups; [B, C, *] with C a multiple of the groups is needed")
    of_image, of_channel = shape[:2], shape[1:2]
    for value, needed in ((scale, of_image), (shift, of_image), (weight, of_channel), (bias, of_channel)):
        if value is not None and value.shape != needed:
            raise ValueError(f"an operand of ada_group_norm is {list(value.shape)}; {list(needed)} is needed")
    return shape[0]


def _refusal(x: Tensor) -> str:
    return f"the native ada_group_norm cannot read x {list(x.shape)} or one of its operands; give tensors with memory of the CPU"


def as_taken(value: Tensor | None) -> Tensor | None:
    """float32, channels one after another; a float32 chunk of a larger tensor is taken as it lies."""
    if value is None or (value.dtype is torch.float32 and (value.is_contiguous() or value.stride(-1) == 1)):
        return value
    return value.float().contiguous()


def _room(operand: Tensor | None) -> Tensor | None:
    """For the gradient of a float32 operand. (torch.empty takes twice as long to read a shape.)"""
    return None if operand is None else torch.empty_like(operand, memory_format=torch.contiguous_format)
