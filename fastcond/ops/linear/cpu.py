"""linear on a CPU: a convolution of 1x1 over the tokens as positions of a channels_last map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcond.ops.linear import reference

# Of an image, and of a layer: with fewer the call costs more than the product.
LEAST_TOKENS, LEAST_CHANNELS = 16, 32


def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`reference.forward`, in operations whose gradients PyTorch knows."""
    if not _is_faster(x, weight, bias):
        return reference.forward(x, weight, bias)
    positions = x.contiguous().unsqueeze(2).permute(0, 3, 1, 2)  # [B, C, tokens, 1]
    y = F.conv2d(positions, weight[:, :, None, None]).permute(0, 2, 3, 1).squeeze(2)
    # The convolution's own gradient of a bias adds all positions one after another, in float32: ten times the error of a sum.
    return y if bias is None else y + bias


def _is_faster(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    floats = all(value is None or value.dtype == torch.float32 for value in (x, weight, bias))
    sizes = x.dim() == 3 and x.shape[1] >= LEAST_TOKENS and min(weight.shape) >= LEAST_CHANNELS
    return floats and sizes and torch.backends.mkldnn.is_available()
