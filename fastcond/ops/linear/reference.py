"""linear in plain PyTorch: the definition of correct, and what runs everywhere but on a CPU."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """y [B, tokens, K] of x [B, tokens, C], weight [K, C], bias [K]."""
    return F.linear(x, weight, bias)
