"""Exponential moving average of a model's weights."""

from __future__ import annotations

import torch
from torch import nn


def ema_decay(step: int, largest: float) -> float:
    """min(largest, (1 + step) / (10 + step)): the average spans about a tenth of a short run, and never less than the last steps.

    step counts the updates done before. Source: the warm-up of TensorFlow's ExponentialMovingAverage(num_updates).
    """
    return min(largest, (1 + step) / (10 + step))


@torch.no_grad()
def update_ema(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average <- decay average + (1 - decay) model, over all parameters in one foreach call; buffers are copied."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1.0 - decay)
    for kept, new in zip(average.buffers(), model.buffers(), strict=True):
        kept.copy_(new)
