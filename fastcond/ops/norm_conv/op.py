"""Registration of `fastcond::norm_conv` and of what packs its weight: one schema, a kernel per device, fake, no gradient.

The reference is the default kernel of every device; PyTorch's dispatcher finds the CPU's own beside it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastcond.ops.norm_conv import cpu, reference

torch.library.define(
    "fastcond::norm_conv",
    "(Tensor x, Tensor? mean, Tensor? gain, Tensor? offset, Tensor weight, Tensor? packed, Tensor? bias, Tensor? residual,"
    " bool silu, bool statistics) -> (Tensor y, Tensor y_mean, Tensor y_m2)",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.define("fastcond::pack_conv_weight", "(Tensor weight) -> Tensor", tags=torch.Tag.pt2_compliant_tag)
torch.library.impl("fastcond::norm_conv", "default", reference.forward)
torch.library.impl("fastcond::pack_conv_weight", "default", reference.pack)
torch.library.impl("fastcond::norm_conv", "cpu", cpu.forward)
torch.library.impl("fastcond::pack_conv_weight", "cpu", cpu.pack)


@torch.library.register_fake("fastcond::norm_conv")
def _forward_fake(
    x: Tensor,
    mean: Tensor | None,
    gain: Tensor | None,
    offset: Tensor | None,
    weight: Tensor,
    packed: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    silu: bool,
    statistics: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (x.shape[0], weight.shape[0])
    y = torch.empty((*shape, *x.shape[2:]), dtype=x.dtype, device=x.device, memory_format=reference.memory_format(x))
    y_mean = x.new_empty(shape if statistics else 0, dtype=reference.statistics_dtype(x))
    return y, y_mean, torch.empty_like(y_mean)


@torch.library.register_fake("fastcond::pack_conv_weight")
def _pack_fake(weight: Tensor) -> Tensor:
    return weight.new_empty(reference.packed_size(weight.shape[0], weight.shape[1]), dtype=torch.float32)


def _no_backward(ctx: Any, *grads: Tensor | None) -> None:
    raise NotImplementedError("norm_conv is for inference and has no gradient; train with ada_group_norm and a convolution")


torch.library.register_autograd("fastcond::norm_conv", _no_backward)
torch.library.register_autograd("fastcond::pack_conv_weight", _no_backward)

# Bound once: looking an overload up costs more than many a small kernel.
norm_conv_forward = torch.ops.fastcond.norm_conv.default
pack_conv_weight_op = torch.ops.fastcond.pack_conv_weight.default
