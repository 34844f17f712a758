"""Timestep and class embeddings; parameter names are those of diffusers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def sinusoidal_embedding(timestep: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Embed timesteps as [cos(t f_i), sin(t f_i)], f_i = max_period^(-i / (dim/2)).

    Args: timestep: [B], integer or float. dim: width, even.
    Returns: float32 [B, dim].
    Source: Vaswani et al. 2017, section 3.5, in the order of diffusers' flip_sin_to_cos=True, freq_shift=0.
    """
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=timestep.device) * (-math.log(max_period) / half)
    angle = timestep.float()[:, None] * torch.exp(exponent)[None, :]
    return torch.cat([torch.cos(angle), torch.sin(angle)], dim=-1)


class EmbeddingMLP(nn.Module):
    """Linear, SiLU, Linear: diffusers' TimestepEmbedding. [B, in_dim] -> [B, dim]."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_dim, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, value: Tensor) -> Tensor:
        return self.linear_2(nn.functional.silu(self.linear_1(value)))


def drop_labels(labels: Tensor, dropped: Tensor, null_label: int) -> Tensor:
    """Replace labels by the null label where `dropped`: label dropout for classifier-free guidance.

    Args: labels: int64 [B]. dropped: bool [B]. null_label: K.
    Returns: int64 [B].
    Source: Ho & Salimans 2022, algorithm 1.
    """
    return torch.where(dropped, torch.full_like(labels, null_label), labels)
