"""AdaGN in plain PyTorch: the definition of correct, for every device and float dtype.

    xh = (x - mean) rstd,   n = weight xh + bias,   u = n (1 + scale) + shift,   y = act(u)

Letters as in the maths: b image, g group, c channel; M = (C/G) HW elements a group. Arithmetic is fp32 (fp64 for fp64).
"""

from __future__ import annotations

import torch
from torch import Tensor

_GROUP = (2, 3, 4)  # the axes of a group in [B, G, C/G, H, rest]


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
    """Returns (y like x, mean [2, B, G], rstd [B, G]); mean and rstd are fp32, fp64 for an fp64 x.

    mean[0] is the mean rounded to its dtype and mean[1] what the rounding left out, so that a backward can take the same
    distances to the mean without another reduction.
    """
    x5 = _grouped(x, num_groups)
    # The mean is taken of the distance to one element of the group: exactly 0 for a constant group, and no digits are lost
    # where the values are large beside their spread.
    pivot = x5[:, :, :1, :1, :1]
    centred = x5 - pivot
    mean_distance = _group_mean(centred)
    centred.sub_(mean_distance)
    variance = _group_mean(centred.square())
    rstd = torch.rsqrt(variance + eps)
    gain, offset = _gain_and_offset(x5, scale, shift, weight, bias)
    u = _apply(centred.mul_(rstd), gain, offset)
    y = u.div_(_one_plus_exp(u)) if silu else u
    mean = pivot + mean_distance
    left_out = (pivot - mean) + mean_distance
    return _ungrouped(y, x), torch.stack((mean.flatten(1), left_out.flatten(1))), rstd.flatten(1)


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
    """Gradients of x, scale, shift, weight, bias; an empty tensor stands where `needed` is False.

    A[b,c] = sum_hw du xh and B[b,c] = sum_hw du are the only reductions over HW; every gradient follows from them.
    """
    batch, channels = x.shape[:2]
    x5, du = _grouped(x, num_groups), _grouped(dy, num_groups)
    rounded, left_out = mean.reshape(2, batch, num_groups, 1, 1, 1)
    centred = (x5 - rounded).sub_(left_out)
    rstd = rstd.reshape(batch, num_groups, 1, 1, 1)
    xh = centred.mul_(rstd)
    gain, offset = _gain_and_offset(x5, scale, shift, weight, bias)
    if silu:
        u = _apply(xh.clone(), gain, offset)
        sigmoid = _one_plus_exp(u).reciprocal_()
        du = u.mul_(1 - sigmoid).add_(1).mul_(sigmoid).mul_(du)
    A, B = _channel_sum(du * xh), _channel_sum(du)
    dx = x.new_empty(0)
    if needed[0]:
        per_group = x5[0, 0].numel()
        wA, wB = (A, B) if gain is None else (gain * A, gain * B)
        m1 = wA.sum(dim=2, keepdim=True) / per_group
        m2 = wB.sum(dim=2, keepdim=True) / per_group
        wdu = du if gain is None else gain * du
        dx = _ungrouped((wdu - m2).sub_(xh.mul_(m1)).mul_(rstd), x)
    A, B = A.reshape(batch, channels), B.reshape(batch, channels)
    return dx, *operand_gradients(A, B, scale, shift, weight, bias, needed)


def operand_gradients(
    A: Tensor,
    B: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dscale, dshift, dweight, dbias) from the two sums A and B, [B, C]; empty where `needed` (x's first) is False."""
    gradients: list[Tensor | None] = [None] * 4
    if needed[1] and scale is not None:
        dscale = A if weight is None else weight.to(A.dtype) * A
        gradients[0] = (dscale if bias is None else dscale + bias.to(A.dtype) * B).to(scale.dtype)
    if needed[2] and shift is not None:
        gradients[1] = B.to(shift.dtype)
    if weight is not None or bias is not None:
        one_plus_scale = 1 if scale is None else 1 + scale.to(A.dtype)
        if needed[3] and weight is not None:
            gradients[2] = (one_plus_scale * A).sum(dim=0).to(weight.dtype)
        if needed[4] and bias is not None:
            gradients[3] = (one_plus_scale * B).sum(dim=0).to(bias.dtype)
    dscale, dshift, dweight, dbias = (A.new_empty(0) if gradient is None else gradient for gradient in gradients)
    return dscale, dshift, dweight, dbias


def _group_mean(value: Tensor) -> Tensor:
    """Mean over a group, [B, G, 1, 1, 1]. A sum to one number alone would be shared out among threads, in another order."""
    if value.shape[:2].numel() == 1:
        return value.expand(2, *value.shape[1:]).mean(dim=_GROUP, keepdim=True)[:1]
    return value.mean(dim=_GROUP, keepdim=True)


def _channel_sum(value: Tensor) -> Tensor:
    """Sum over the positions of a channel, [B, G, C/G, 1, 1]; see `_group_mean`."""
    if value.shape[:3].numel() == 1:
        return value.expand(2, *value.shape[1:]).sum(dim=(3, 4), keepdim=True)[:1]
    return value.sum(dim=(3, 4), keepdim=True)


def _one_plus_exp(u: Tensor) -> Tensor:
    """1 + exp(-u), for SiLU = u / (1 + exp(-u)): unlike F.silu, exp gives equal numbers equal bits wherever they lie."""
    return u.neg().exp_().add_(1)


def _apply(xh: Tensor, gain: Tensor | None, offset: Tensor | None) -> Tensor:
    """u = gain xh + offset, in place of xh."""
    u = xh if gain is None else xh.mul_(gain)
    return u if offset is None else u.add_(offset)


def statistics_dtype(x: Tensor) -> torch.dtype:
    """fp64 for fp64, else fp32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _grouped(x: Tensor, num_groups: int) -> Tensor:
    """[B, C, *] as [B, G, C/G, 1 or H, rest] in the arithmetic's dtype: a view of either memory format if no cast is due."""
    channels = x.shape[1]
    x4 = x.unsqueeze(-1).unsqueeze(-1) if x.dim() == 2 else x.unsqueeze(-1) if x.dim() == 3 else x.flatten(3)
    return x4.unflatten(1, (num_groups, channels // num_groups)).to(statistics_dtype(x))


def _ungrouped(y5: Tensor, x: Tensor) -> Tensor:
    """Undo `_grouped`: shape, dtype and strides of x."""
    y = y5.flatten(1, 2).reshape(x.shape).to(x.dtype)
    return y if y.stride() == x.stride() else torch.empty_like(x).copy_(y)


def _gain_and_offset(
    x5: Tensor, scale: Tensor | None, shift: Tensor | None, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """w = weight (1 + scale) and bias (1 + scale) + shift, each [B or 1, G, C/G, 1, 1] or None, so that u = w xh + offset."""

    def shaped(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.to(x5.dtype).reshape(-1, x5.shape[1], x5.shape[2], 1, 1)

    scale, shift, weight, bias = shaped(scale), shaped(shift), shaped(weight), shaped(bias)
    gain = weight if scale is None else 1 + scale if weight is None else weight * (1 + scale)
    offset = bias if bias is None or scale is None else bias * (1 + scale)
    return gain, shift if offset is None else offset if shift is None else offset + shift
