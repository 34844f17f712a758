"""What ops of x, weight and bias share beside their kernels: the registered gradient, and the short way past the dispatcher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastcond.ops import short_way


def register_gradient(name: str, backward_op: Any) -> None:
    """The gradient of `fastcond::<name>_native` of x, weight and bias, which has itself none.

    Args: backward_op: `fastcond::<name>_native_backward` of dy, x, weight and the list of which gradients are needed.
    """

    def set_up(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        x, weight, _ = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight)

    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return None, None, None
        needed = list(ctx.needs_input_grad)
        grads = backward_op(dy, *ctx.saved_tensors, needed)
        return tuple(grad if need else None for grad, need in zip(grads, needed, strict=True))

    def refuse(ctx: Any, *grads: Tensor | None) -> None:
        raise NotImplementedError(
            f"{name} has no second derivative on a CPU; do not call backward with create_graph=True through it"
        )

    torch.library.register_autograd(f"fastcond::{name}_native", backward, setup_context=set_up)
    torch.library.register_autograd(f"fastcond::{name}_native_backward", refuse)


def eager_call(kernels: Any, backward_op: Any) -> Callable[[Tensor, Tensor, Tensor | None], Tensor | None]:
    """The short way of an op of x, weight and bias.

    Args:
        kernels: the op's `cpu`, with is_faster, forward and backward. backward_op: what the gradient goes by where it may not go
            the short way; it refuses a second derivative.
    Returns: a function of x, weight and bias, whose shapes were checked, to y, differentiable as the op is; to None where the op
        has to be called.
    """

    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            ctx.save_for_backward(x, weight)
            return kernels.forward(x, weight, bias)

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
            x, weight = ctx.saved_tensors
            needed = list(ctx.needs_input_grad)
            backward = backward_op if torch.is_grad_enabled() or not short_way.is_short(dy, x, weight) else kernels.backward
            grads = backward(dy, x, weight, needed)
            return tuple(grad if need else None for grad, need in zip(grads, needed, strict=True))

    apply = short_way.apply_of(Differentiable)

    def call(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        if not short_way.is_short(x, weight, bias) or torch.is_autocast_enabled("cpu") or not kernels.is_faster(x, weight, bias):
            return None
        if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)):
            return apply(x, weight, bias)
        return kernels.forward(x, weight, bias)

    return call
