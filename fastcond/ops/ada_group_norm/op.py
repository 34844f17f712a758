"""Registration of `fastcond::ada_group_norm`: one schema, a kernel per device, fake and autograd.

The reference is the default kernel of every device; a device's own kernel stands beside it, found by PyTorch's dispatcher.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastcond.ops import gpu
from fastcond.ops.ada_group_norm import cpu, reference

_OPERANDS = "Tensor? scale, Tensor? shift, Tensor? weight, Tensor? bias"
torch.library.define(
    "fastcond::ada_group_norm",
    f"(Tensor x, {_OPERANDS}, int num_groups, float eps, bool silu) -> (Tensor y, Tensor mean, Tensor rstd)",
)
torch.library.define(
    "fastcond::ada_group_norm_backward",
    f"(Tensor dy, Tensor x, {_OPERANDS}, Tensor mean, Tensor rstd, int num_groups, bool silu, bool[] needed)"
    " -> (Tensor dx, Tensor dscale, Tensor dshift, Tensor dweight, Tensor dbias)",
)
torch.library.impl("fastcond::ada_group_norm", "default", reference.forward)
torch.library.impl("fastcond::ada_group_norm_backward", "default", reference.backward)
torch.library.impl("fastcond::ada_group_norm", "cpu", cpu.forward)
torch.library.impl("fastcond::ada_group_norm_backward", "cpu", cpu.backward)


def _for_gpu() -> Any:
    return gpu.launchers("fastcond.ops.ada_group_norm.triton_launch") or reference


@torch.library.impl("fastcond::ada_group_norm", "cuda")
def _forward_cuda(x: Tensor, *operands: Any) -> tuple[Tensor, Tensor, Tensor]:
    with torch.cuda.device(x.device):
        return _for_gpu().forward(x, *operands)


@torch.library.impl("fastcond::ada_group_norm_backward", "cuda")
def _backward_cuda(dy: Tensor, *operands: Any) -> tuple[Tensor, ...]:
    with torch.cuda.device(dy.device):
        return _for_gpu().backward(dy, *operands)


@torch.library.register_fake("fastcond::ada_group_norm")
def _forward_fake(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    eps: float,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.new_empty((2, x.shape[0], num_groups), dtype=reference.statistics_dtype(x))
    return torch.empty_like(x), mean, torch.empty_like(mean[0])


@torch.library.register_fake("fastcond::ada_group_norm_backward")
def _backward_fake(
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
) -> tuple[Tensor, ...]:
    dx = torch.empty_like(x) if needed[0] else x.new_empty(0)
    operands = zip((scale, shift, weight, bias), needed[1:], strict=True)
    # Gradients of the operands are contiguous even where the operand is a strided view of a chunk.
    return dx, *(x.new_empty(0) if p is None or not need else p.new_empty(p.shape) for p, need in operands)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, scale, shift, weight, bias, ctx.num_groups, _, ctx.silu = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, scale, shift, weight, bias, mean, rstd)


def _autograd(ctx: Any, dy: Tensor | None, _dmean: None, _drstd: None) -> tuple[Tensor | None, ...]:
    needed = list(ctx.needs_input_grad[:5])
    if dy is None:
        return (None,) * 8
    x, scale, shift, weight, bias, mean, rstd = ctx.saved_tensors
    grads = ada_group_norm_backward(dy, x, scale, shift, weight, bias, mean, rstd, ctx.num_groups, ctx.silu, needed)
    return *(grad if need else None for grad, need in zip(grads, needed, strict=True)), None, None, None


def _no_double_backward(ctx: Any, *grads: Tensor | None) -> None:
    raise NotImplementedError("ada_group_norm has no second derivative; do not call backward with create_graph=True through it")


torch.library.register_autograd("fastcond::ada_group_norm", _autograd, setup_context=_setup_context)
torch.library.register_autograd("fastcond::ada_group_norm_backward", _no_double_backward)

# Bound once: looking an overload up costs more than many a small kernel.
ada_group_norm_forward = torch.ops.fastcond.ada_group_norm.default
ada_group_norm_backward = torch.ops.fastcond.ada_group_norm_backward.default
