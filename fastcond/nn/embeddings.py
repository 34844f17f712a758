"""Timestep and class embeddings; parameter names are those of diffusers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def sinusoidal_embedding(
    timestep: Tensor, dim: int, max_period: float = 10_000.0, *, flip_sin_to_cos: bool = True, freq_shift: float = 0.0
) -> Tensor:
    """Embed timesteps as [cos(t f_i), sin(t f_i)], f_i = max_period^(-i / (dim/2 - freq_shift)).

    Args: timestep: [B], integer or float. dim: width; an odd one ends in a zero. flip_sin_to_cos: False: sin comes first.
    Returns: float32 [B, dim].
    Source: Vaswani et al. 2017, section 3.5, with diffusers' names for what implementations differ in.
    """
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=timestep.device) * (-math.log(max_period) / (half - freq_shift))
    angle = timestep.float()[:, None] * torch.exp(exponent)[None, :]
    waves = [torch.cos(angle), torch.sin(angle)] if flip_sin_to_cos else [torch.sin(angle), torch.cos(angle)]
    return nn.functional.pad(torch.cat(waves, dim=-1), (0, dim % 2))


class FourierProjection(nn.Module):
    """[sin(2 pi f log t), cos(2 pi f log t)] at fixed random frequencies f. t [B] -> [B, 2 dim].

    Source: Song et al. 2021 (score SDE), appendix C.2; Tancik et al. 2020. State_dict of diffusers' GaussianFourierProjection.
    """

    def __init__(self, dim: int, scale: float = 16.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(dim) * scale, requires_grad=False)

    def forward(self, timestep: Tensor) -> Tensor:
        # Of hundreds of radians, a rounding is 3e-5 of one: factors in diffusers' order give its bits.
        angle = torch.log(timestep.to(self.weight.dtype))[:, None] * self.weight[None, :] * 2 * math.pi
        return torch.cat([torch.sin(angle), torch.cos(angle)], dim=-1)


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

    Args: labels: int64 [B], or rows, float [B, K], of which zeros are the null label's. dropped: bool [B]. null_label: K.
    Returns: like labels.
    Source: Ho & Salimans 2022, algorithm 1.
    """
    if labels.is_floating_point():
        return labels.masked_fill(dropped[:, None], 0.0)
    return torch.where(dropped, torch.full_like(labels, null_label), labels)
