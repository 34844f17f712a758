"""Registration of `fastcond::conv3x3`, and of what it is on a CPU: an op with kernels, fake and autograd of its own.

By default conv3x3 is a composite of PyTorch's own operations: F.conv2d, its autograd, and what a compiler makes of it. PyTorch's
dispatcher finds beside it what a CPU does, and that autocast is not for these kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastcond.ops.conv3x3 import cpu, reference
from fastcond.ops.weighted import register_gradient

torch.library.define("fastcond::conv3x3", "(Tensor x, Tensor weight, Tensor? bias) -> Tensor", tags=torch.Tag.pt2_compliant_tag)
torch.library.define(
    "fastcond::conv3x3_native", "(Tensor x, Tensor weight, Tensor? bias) -> Tensor", tags=torch.Tag.pt2_compliant_tag
)
torch.library.define(
    "fastcond::conv3x3_native_backward",
    "(Tensor dy, Tensor x, Tensor weight, bool[] needed) -> (Tensor dx, Tensor dweight, Tensor dbias)",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.impl("fastcond::conv3x3_native", "default", reference.native_forward)
torch.library.impl("fastcond::conv3x3_native_backward", "default", reference.native_backward)
torch.library.impl("fastcond::conv3x3_native", "cpu", cpu.forward)
torch.library.impl("fastcond::conv3x3_native_backward", "cpu", cpu.backward)

# Bound once: looking an overload up costs more than many a small kernel.
conv3x3_native = torch.ops.fastcond.conv3x3_native.default
conv3x3_native_backward = torch.ops.fastcond.conv3x3_native_backward.default


def _on_cpu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return conv3x3_native(x, weight, bias) if cpu.is_faster(x, weight, bias) else reference.forward(x, weight, bias)


_library = torch.library.Library("fastcond", "FRAGMENT")
_library.impl("conv3x3", reference.forward, "CompositeImplicitAutograd")
_library.impl("conv3x3", reference.forward, "AutocastCPU")
_library.impl("conv3x3", _on_cpu, "CPU")
_library.impl("conv3x3", _on_cpu, "AutogradCPU")
conv3x3_op = torch.ops.fastcond.conv3x3.default


@torch.library.register_fake("fastcond::conv3x3_native")
def _forward_fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    shape = (x.shape[0], weight.shape[0], *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=reference.memory_format(x, weight))


@torch.library.register_fake("fastcond::conv3x3_native_backward")
def _backward_fake(dy: Tensor, x: Tensor, weight: Tensor, needed: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    def like(operand: Tensor, wanted: bool) -> Tensor:
        if not wanted:
            return x.new_empty(0)
        return torch.empty(operand.shape, dtype=x.dtype, device=x.device, memory_format=reference.memory_format(operand))

    return like(x, needed[0]), like(weight, needed[1]), x.new_empty(weight.shape[0] if needed[2] else 0)


register_gradient("conv3x3", conv3x3_native_backward)
