"""The short way to the native CPU kernels in eager mode (fastcond/ops/short_way.py)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastcond.ops.linear import cpu
from fastcond.ops.linear.op import linear_native_backward
from fastcond.ops.short_way import is_short


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """y, differentiable as the op is, of operands whose shapes were checked; None where the op has to be called."""
    if not is_short(x, weight, bias) or torch.is_autocast_enabled("cpu") or not cpu.is_faster(x, weight, bias):
        return None
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)):
        return _Differentiable.apply(x, weight, bias)
    return cpu.forward(x, weight, bias)


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return cpu.forward(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needed = list(ctx.needs_input_grad)
        # The op refuses a second derivative.
        by_op = torch.is_grad_enabled() or not is_short(dy, x, weight)
        grads = linear_native_backward(dy, x, weight, needed) if by_op else cpu.backward(dy, x, weight, needed)
        return tuple(grad if need else None for grad, need in zip(grads, needed, strict=True))
