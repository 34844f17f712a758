"""linear in plain PyTorch: the definition of correct, and what runs wherever the CPU kernels do not."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """y [B, tokens, K] of x [B, tokens, C], weight [K, C], bias [K]."""
    return F.linear(x, weight, bias)


def native_forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`forward`, contiguous."""
    return forward(x, weight, bias).contiguous()


def native_backward(dy: Tensor, x: Tensor, weight: Tensor, needed: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (dx [B, tokens, C], dweight [K, C], dbias [K]), contiguous, those that are not `needed` empty."""
    none = x.new_empty(0)
    dx = (dy @ weight).contiguous() if needed[0] else none
    dweight = (dy.flatten(0, 1).t() @ x.flatten(0, 1)).contiguous() if needed[1] else none
    return dx, dweight, dy.sum(dim=(0, 1)) if needed[2] else none
