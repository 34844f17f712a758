"""The short way to the native CPU kernel in eager mode (fastcond/ops/short_way.py)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastcond.ops import native
from fastcond.ops.ada_group_norm import cpu
from fastcond.ops.ada_group_norm.op import ada_group_norm_backward
from fastcond.ops.short_way import apply_of, is_short, nobody_looks

_MOST_GROUPS = 1 << 30  # as a number that the library takes


def ada_group_norm(x: Tensor, operands: tuple[Tensor | None, ...], num_groups: int, eps: float, silu: bool) -> Tensor | None:
    """y, differentiable as the op is; None where the op has to be called, or what was given is at fault."""
    if not (nobody_looks() and type(num_groups) is int and num_groups <= _MOST_GROUPS):
        return None
    library, taken = native.native, operands
    look = library.ada_group_norm_look(x, *operands, num_groups)  # type: ignore[union-attr]
    if look != library.TAKEN:  # type: ignore[union-attr]
        if look != library.TAKEN_AS_COPIES:  # type: ignore[union-attr]
            return None
        taken = tuple(map(cpu.as_taken, operands))
    if torch.is_grad_enabled():
        for tensor in (x, *operands):
            if tensor is not None and tensor.requires_grad:
                return _apply(x, *operands, (taken, taken is operands, num_groups, eps, silu))
    return cpu.normalise(x, taken, num_groups, eps, silu)


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *others: Any) -> Tensor:
        *operands, (taken, are_taken, num_groups, eps, silu) = others
        # mean [2, B, G] and rstd [B, G]. Neither an input nor an output, so no matter of save_for_backward.
        statistics = x.new_empty(3, x.shape[0], num_groups, dtype=torch.float32)
        ctx.call = statistics, are_taken, num_groups, silu
        ctx.save_for_backward(x, *operands)
        return cpu.normalise(x, taken, num_groups, eps, silu, statistics)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, *operands = ctx.saved_tensors
        statistics, are_taken, num_groups, silu = ctx.call
        needed, grads = ctx.needs_input_grad[:5], None
        # Whoever packed what was saved may have unpacked it in another layout. The op refuses a second derivative.
        if not torch.is_grad_enabled() and is_short(dy, x, *operands):
            taken = operands if are_taken else list(map(cpu.as_taken, operands))
            grads = cpu.differentiate(dy, x, taken, statistics, None, num_groups, silu, needed)
        if grads is None:
            given = (dy, x, *operands, statistics[:2], statistics[2], num_groups, silu, list(needed))
            grads = [grad if need else None for grad, need in zip(ada_group_norm_backward(*given), needed, strict=True)]
        elif not are_taken:
            grads = [grad if grad is None else grad.to(of.dtype) for grad, of in zip(grads, (x, *operands), strict=True)]
        return *grads, None


_apply = apply_of(_Differentiable)
