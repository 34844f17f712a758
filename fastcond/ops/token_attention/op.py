"""Registration of `fastcond::token_attention`, and of what it is on a CPU: an op with kernels, fake and autograd of its own.

By default token_attention is a composite of PyTorch's own operations: scaled_dot_product_attention, its autograd, and what a
compiler makes of it. PyTorch's dispatcher finds beside it what a CPU does, and that autocast is not for these kernels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastcond.ops.token_attention import cpu, reference

_TAG = torch.Tag.pt2_compliant_tag
torch.library.define("fastcond::token_attention", "(Tensor q, Tensor k, Tensor v, int heads) -> Tensor", tags=_TAG)
torch.library.define(
    "fastcond::token_attention_native",
    "(Tensor q, Tensor k, Tensor v, int heads) -> (Tensor y, Tensor softmax)",
    tags=_TAG,
)
torch.library.define(
    "fastcond::token_attention_native_backward",
    "(Tensor dy, Tensor q, Tensor k, Tensor v, Tensor y, Tensor softmax, int heads) -> (Tensor dq, Tensor dk, Tensor dv)",
    tags=_TAG,
)
torch.library.impl("fastcond::token_attention_native", "default", reference.native_forward)
torch.library.impl("fastcond::token_attention_native_backward", "default", reference.native_backward)
torch.library.impl("fastcond::token_attention_native", "cpu", cpu.forward)
torch.library.impl("fastcond::token_attention_native_backward", "cpu", cpu.backward)

# Bound once: looking an overload up costs more than many a small kernel.
token_attention_native = torch.ops.fastcond.token_attention_native.default
token_attention_native_backward = torch.ops.fastcond.token_attention_native_backward.default


def _on_cpu(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    if cpu.are_taken(q, k, v):
        return token_attention_native(q, k, v, heads)[0]
    return reference.forward(q, k, v, heads)


_library = torch.library.Library("fastcond", "FRAGMENT")
_library.impl("token_attention", reference.forward, "CompositeImplicitAutograd")
_library.impl("token_attention", reference.forward, "AutocastCPU")
_library.impl("token_attention", _on_cpu, "CPU")
_library.impl("token_attention", _on_cpu, "AutogradCPU")
token_attention_op = torch.ops.fastcond.token_attention.default


@torch.library.register_fake("fastcond::token_attention_native")
def _forward_fake(q: Tensor, k: Tensor, v: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty((q.shape[0], heads, 2, q.shape[1]))


@torch.library.register_fake("fastcond::token_attention_native_backward")
def _backward_fake(dy: Tensor, q: Tensor, *operands: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.heads = inputs
    y, softmax = output
    ctx.mark_non_differentiable(softmax)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, y, softmax)


def _autograd(ctx: Any, dy: Tensor | None, _dsoftmax: None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return None, None, None, None
    return *token_attention_native_backward(dy, *ctx.saved_tensors, ctx.heads), None


def _no_double_backward(ctx: Any, *grads: Tensor | None) -> None:
    raise NotImplementedError("token_attention has no second derivative on a CPU; do not call backward with create_graph=True")


torch.library.register_autograd("fastcond::token_attention_native", _autograd, setup_context=_setup_context)
torch.library.register_autograd("fastcond::token_attention_native_backward", _no_double_backward)
