"""ada_group_norm by its Triton launchers, whatever the device: for the interpreter, and for compiled code run by ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fastcond.ops.ada_group_norm import plan, triton_launch
from tests.support.ada_group_norm import Case


class _Triton(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        x, scale, shift, weight, bias, ctx.num_groups, _, ctx.silu = arguments
        y, mean, rstd = triton_launch.forward(*arguments)
        ctx.save_for_backward(x, scale, shift, weight, bias, mean, rstd)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        needed = list(ctx.needs_input_grad[:5])
        grads = triton_launch.backward(dy, *ctx.saved_tensors, ctx.num_groups, ctx.silu, needed)
        return *(grad if need else None for grad, need in zip(grads, needed, strict=True)), None, None, None


def by_triton(case: Case, operands: list[Tensor | None]) -> Tensor:
    """y, differentiable: the public function's reshaping of scale and shift, then the launchers."""
    x, scale, shift, weight, bias = operands
    scale, shift = (
        None if value is None else (value.flatten(1) if value.dim() > 2 else value).expand(x.shape[:2])
        for value in (scale, shift)
    )
    return _Triton.apply(x, scale, shift, weight, bias, case.num_groups, case.eps, case.silu)


@contextmanager
def capacity(elements: int | None, splits: int = 3, clusters: bool = False) -> Iterator[None]:
    """Plans for a GPU whose CTAs hold `elements` elements (None: as they do), so that small shapes take the other tiers."""
    names = ("_CAPACITY", "_PACKED_CAPACITY", "_MOST_SPLITS")
    before = {name: getattr(plan, name) for name in names}
    takes_clusters = triton_launch._takes_clusters
    if elements is not None:
        plan._CAPACITY = plan._PACKED_CAPACITY = {"forward": elements, "backward": elements}
        plan._MOST_SPLITS = splits
    triton_launch._takes_clusters = lambda device: clusters
    plan.make_plan.cache_clear()
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(plan, name, value)
        triton_launch._takes_clusters = takes_clusters
        plan.make_plan.cache_clear()
