"""The short way to the native CPU kernel in eager mode (fastcond/ops/short_way.py)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastcond.ops.ada_group_norm import cpu, layout
from fastcond.ops.ada_group_norm.op import ada_group_norm_backward
from fastcond.ops.short_way import is_short


def ada_group_norm(x: Tensor, operands: tuple[Tensor | None, ...], num_groups: int, eps: float, silu: bool) -> Tensor | None:
    """y, differentiable as the op is, of operands whose shapes were checked; None where the op has to be called."""
    if x.dtype not in cpu.STORED or not is_short(x, *operands) or x.numel() == 0:
        return None
    channels_last = layout.channels_last(x)
    if channels_last is None:
        return None
    if torch.is_grad_enabled():
        for tensor in (x, *operands):
            if tensor is not None and tensor.requires_grad:
                return _Differentiable.apply(x, *operands, (channels_last, num_groups, eps, silu))
    return cpu.normalise(x, channels_last, operands, num_groups, eps, silu)


def _addresses(statistics: Tensor) -> tuple[int, int]:
    """Of mean [2, B, G] and rstd [B, G] in [3, B, G], float32."""
    start = statistics.data_ptr()
    return start, start + 2 * statistics.stride(0) * 4


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *others: Any) -> Tensor:
        *operands, (channels_last, ctx.num_groups, eps, ctx.silu) = others
        # Neither an input nor an output, so no matter of save_for_backward.
        ctx.statistics = x.new_empty(3, x.shape[0], ctx.num_groups, dtype=torch.float32)
        ctx.save_for_backward(x, *operands)
        statistics = _addresses(ctx.statistics)
        return cpu.normalise(x, channels_last, tuple(operands), ctx.num_groups, eps, ctx.silu, statistics)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, *operands = ctx.saved_tensors
        needed, statistics = ctx.needs_input_grad[:5], ctx.statistics
        # Whoever packed what was saved may have unpacked it in another layout. The op refuses a second derivative.
        channels_last = layout.channels_last(x)
        if channels_last is None or torch.is_grad_enabled() or not is_short(dy, x):
            given = (dy, x, *operands, statistics[:2], statistics[2], ctx.num_groups, ctx.silu, list(needed))
            grads = [grad if need else None for grad, need in zip(ada_group_norm_backward(*given), needed, strict=True)]
            return *grads, None
        kept = _addresses(statistics)
        grads = cpu.differentiate(dy, x, channels_last, tuple(operands), kept, ctx.num_groups, ctx.silu, needed)
        return *grads, None
