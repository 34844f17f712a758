"""The short way to the native CPU kernels in eager mode (fastcond/ops/short_way.py)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastcond.ops import short_way
from fastcond.ops.token_attention import cpu
from fastcond.ops.token_attention.op import token_attention_native_backward


def token_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor | None:
    """y, differentiable as the op is, of operands whose shapes were checked; None where the op has to be called."""
    if not short_way.is_short(q, k, v) or torch.is_autocast_enabled("cpu") or not cpu.are_taken(q, k, v):
        return None
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return _apply(q, k, v, heads)
    return cpu.forward(q, k, v, heads)[0]


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        ctx.heads = heads
        # The softmax's sums are neither an input nor an output, so no matter of save_for_backward.
        y, ctx.softmax = cpu.forward(q, k, v, heads)
        ctx.save_for_backward(q, k, v, y)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, y = ctx.saved_tensors
        # The op refuses a second derivative.
        by_op = torch.is_grad_enabled() or not short_way.is_short(dy, q, k, v)
        backward = token_attention_native_backward if by_op else cpu.backward
        return *backward(dy, q, k, v, y, ctx.softmax, ctx.heads), None


_apply = short_way.apply_of(_Differentiable)
