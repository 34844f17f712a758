"""token_attention in plain PyTorch: the definition of correct, and what runs wherever the CPU kernels do not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def forward(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """y [B, tokens, C] of q, k, v [B, tokens, C]."""
    q, k, v = (_split(value, heads) for value in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def native_forward(q: Tensor, k: Tensor, v: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Returns (y, softmax [B, heads, 2, tokens] of each query: the largest score, and 1 over its sum of exponentials)."""
    scores = _scores(q, k, heads)
    largest = scores.amax(dim=-1)
    share = 1 / (scores - largest[..., None]).exp().sum(dim=-1)
    return _joined(scores.softmax(dim=-1) @ _split(v, heads)), torch.stack((largest, share), dim=2)


def native_backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, softmax: Tensor, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (dq, dk, dv), each [B, tokens, C] without gaps."""
    largest, share = softmax.unbind(dim=2)
    probability = (_scores(q, k, heads) - largest[..., None]).exp() * share[..., None]
    of_head = _split(dy, heads)
    sums = (of_head * _split(y, heads)).sum(dim=-1, keepdim=True)
    dscores = probability * (of_head @ _split(v, heads).transpose(2, 3) - sums) * (q.shape[2] // heads) ** -0.5
    dq, dk = dscores @ _split(k, heads), dscores.transpose(2, 3) @ _split(q, heads)
    return _joined(dq), _joined(dk), _joined(probability.transpose(2, 3) @ of_head)


def _split(value: Tensor, heads: int) -> Tensor:
    """[B, tokens, C] as [B, heads, tokens, d]."""
    return value.unflatten(2, (heads, -1)).transpose(1, 2)


def _joined(value: Tensor) -> Tensor:
    """[B, heads, tokens, d] as [B, tokens, C] without gaps."""
    return value.transpose(1, 2).flatten(2).contiguous()


def _scores(q: Tensor, k: Tensor, heads: int) -> Tensor:
    return _split(q, heads) @ _split(k, heads).transpose(2, 3) * (q.shape[2] // heads) ** -0.5
