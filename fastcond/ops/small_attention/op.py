"""Registration of `fastcond::small_attention`: one schema, a kernel per device, fake, no gradient.

The reference is the default kernel of every device; PyTorch's dispatcher finds the CPU's own beside it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastcond.ops.small_attention import cpu, reference

torch.library.define(
    "fastcond::small_attention",
    "(Tensor x, Tensor? mean, Tensor? gain, Tensor? offset, Tensor qkv_weight, Tensor? qkv_bias, Tensor out_weight,"
    " Tensor? out_bias, Tensor? packed, Tensor? residual, int heads) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.impl("fastcond::small_attention", "default", reference.forward)
torch.library.impl("fastcond::small_attention", "cpu", cpu.forward)


@torch.library.register_fake("fastcond::small_attention")
def _forward_fake(x: Tensor, *operands: Any) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=reference.memory_format(x))


def _no_backward(ctx: Any, *grads: Tensor | None) -> None:
    raise NotImplementedError("small_attention is for inference and has no gradient; train with scaled_dot_product_attention")


torch.library.register_autograd("fastcond::small_attention", _no_backward)

# Bound once: looking an overload up costs more than many a small kernel.
small_attention_forward = torch.ops.fastcond.small_attention.default
