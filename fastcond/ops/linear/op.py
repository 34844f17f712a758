"""Registration of `fastcond::linear`, and of what it is on a CPU: an op with kernels, fake and autograd of its own.

By default linear is F.linear, its autograd, and what a compiler makes of it. PyTorch's dispatcher finds beside it what a CPU
does, and that autocast is not for these kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastcond.ops.linear import cpu, reference
from fastcond.ops.weighted import register_gradient

_TAG = torch.Tag.pt2_compliant_tag
torch.library.define("fastcond::linear", "(Tensor x, Tensor weight, Tensor? bias) -> Tensor", tags=_TAG)
torch.library.define("fastcond::linear_native", "(Tensor x, Tensor weight, Tensor? bias) -> Tensor", tags=_TAG)
torch.library.define(
    "fastcond::linear_native_backward",
    "(Tensor dy, Tensor x, Tensor weight, bool[] needed) -> (Tensor dx, Tensor dweight, Tensor dbias)",
    tags=_TAG,
)
torch.library.impl("fastcond::linear_native", "default", reference.native_forward)
torch.library.impl("fastcond::linear_native_backward", "default", reference.native_backward)
torch.library.impl("fastcond::linear_native", "cpu", cpu.forward)
torch.library.impl("fastcond::linear_native_backward", "cpu", cpu.backward)

# Bound once: looking an overload up costs more than many a small kernel.
linear_native = torch.ops.fastcond.linear_native.default
linear_native_backward = torch.ops.fastcond.linear_native_backward.default


def _on_cpu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return linear_native(x, weight, bias) if cpu.is_faster(x, weight, bias) else reference.forward(x, weight, bias)


_library = torch.library.Library("fastcond", "FRAGMENT")
_library.impl("linear", reference.forward, "CompositeImplicitAutograd")
_library.impl("linear", reference.forward, "AutocastCPU")
_library.impl("linear", _on_cpu, "CPU")
_library.impl("linear", _on_cpu, "AutogradCPU")
linear_op = torch.ops.fastcond.linear.default


@torch.library.register_fake("fastcond::linear_native")
def _forward_fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:2], weight.shape[0]))


@torch.library.register_fake("fastcond::linear_native_backward")
def _backward_fake(dy: Tensor, x: Tensor, weight: Tensor, needed: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    shapes = x.shape, weight.shape, weight.shape[:1]
    dx, dweight, dbias = (x.new_empty(shape if need else (0,)) for shape, need in zip(shapes, needed, strict=True))
    return dx, dweight, dbias


register_gradient("linear", linear_native_backward)
