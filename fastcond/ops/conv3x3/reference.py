"""conv3x3 in plain PyTorch: the definition of correct, and what runs wherever the CPU kernels do not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """y [B, K, H, W] of x [B, C, H, W], weight [K, C, 3, 3], bias [K]."""
    return F.conv2d(x, weight, bias, padding=1)


def native_forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`forward` in the memory format that is promised."""
    return forward(x, weight, bias).contiguous(memory_format=memory_format(x, weight))


def native_backward(dy: Tensor, x: Tensor, weight: Tensor, needed: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (dx like x, dweight like weight, dbias [K]), those that are not `needed` empty."""
    ones, none = [1, 1], [0, 0]
    grads = torch.ops.aten.convolution_backward(dy, x, weight, weight.shape[:1], ones, ones, ones, False, none, 1, needed)
    dx, dweight, dbias = (x.new_empty(0) if grad is None else grad for grad in grads)
    if needed[0]:
        dx = dx.contiguous(memory_format=memory_format(x))
    if needed[1]:
        dweight = dweight.contiguous(memory_format=memory_format(weight))
    return dx, dweight, dbias


def memory_format(*operands: Tensor) -> torch.memory_format:
    """Contiguous where all operands are that and nothing else, channels_last otherwise."""
    only_contiguous = all(
        operand.is_contiguous() and not operand.is_contiguous(memory_format=torch.channels_last) for operand in operands
    )
    return torch.contiguous_format if only_contiguous else torch.channels_last
