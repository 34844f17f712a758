"""Registration of `fastcond::linear`: a composite of PyTorch's own operations, by default F.linear, on a CPU its own.

Their autograd is PyTorch's, and a compiler sees them.
"""

from __future__ import annotations

import torch

from fastcond.ops.linear import cpu, reference

torch.library.define("fastcond::linear", "(Tensor x, Tensor weight, Tensor? bias) -> Tensor", tags=torch.Tag.pt2_compliant_tag)
_library = torch.library.Library("fastcond", "FRAGMENT")
_library.impl("linear", reference.forward, "CompositeImplicitAutograd")
_library.impl("linear", reference.forward, "AutocastCPU")
_library.impl("linear", cpu.forward, "CPU")
_library.impl("linear", cpu.forward, "AutogradCPU")

# Bound once: looking an overload up costs more than many a small kernel.
linear_op = torch.ops.fastcond.linear.default
