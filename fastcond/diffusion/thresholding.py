"""Dynamic thresholding (Saharia et al. 2022): a clamp that follows each image, so that strong guidance does not saturate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DynamicThreshold:
    """percentile in (0, 1]; largest: an upper bound of s, at least 1. Raises: ValueError for others."""

    percentile: float
    largest: float = math.inf

    def __post_init__(self) -> None:
        check_percentile(self.percentile)
        if not self.largest >= 1:
            raise ValueError(f"the largest threshold is {self.largest}; it must be at least 1")

    def __call__(self, x_0: Tensor) -> Tensor:
        """`dynamic_threshold` of x_0."""
        return dynamic_threshold(x_0, self.percentile, self.largest)


def dynamic_threshold(x_0: Tensor, percentile: float, largest: float = math.inf) -> Tensor:
    """clamp(x_0, -s, s) / s with s = max(1, the percentile of |x_0| over an image's elements), and at most `largest`.

    Between two elements the percentile is interpolated linearly, as by torch.quantile.
    Args: x_0: float [B, ...]; percentile in (0, 1], such as 0.995; 1 is the largest element.
    Returns: a tensor like x_0, in [-1, 1]. Reads nothing back to the host.
    Raises: ValueError for a percentile outside (0, 1].
    Source: Saharia et al. 2022, "Photorealistic text-to-image diffusion models", section 2.3.
    """
    check_percentile(percentile)
    # Not torch.quantile: it reads a value on the host, and refuses more than 16 million elements.
    ordered = x_0.flatten(1).abs().sort(dim=1).values
    rank = percentile * (ordered.shape[1] - 1)
    below = math.floor(rank)
    above = min(below + 1, ordered.shape[1] - 1)
    s = torch.lerp(ordered[:, below], ordered[:, above], rank - below).clamp(min=1, max=largest)
    s = s.reshape(-1, *[1] * (x_0.dim() - 1))
    return torch.maximum(torch.minimum(x_0, s), -s) / s


def check_percentile(percentile: float) -> None:
    """Raises ValueError unless 0 < percentile <= 1."""
    if not 0.0 < percentile <= 1.0:
        raise ValueError(f"dynamic threshold is {percentile}; give a percentile of |x_0| in (0, 1], such as 0.995")
