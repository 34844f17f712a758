"""Inputs of a network, and its frozen form against itself in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from fastcond.engine.frozen_unet import FrozenUNet
from fastcond.nn import ConditionalUNet
from tests.tolerances import assert_network_close


def inputs(model: ConditionalUNet, batch: int = 3, size: tuple[int, int] | None = None, seed: int = 1) -> tuple[Tensor, Tensor]:
    """x_t and labels, the null label among them."""
    generator = torch.Generator().manual_seed(seed)
    x_t = torch.randn(batch, model.config.in_channels, *(size or model.config.image_size), generator=generator)
    return x_t, torch.arange(3, 3 + batch) % (model.config.num_classes + 1)


def assert_equals_the_model(model: ConditionalUNet, x_t: Tensor, label: Tensor, timestep: int = 412) -> None:
    """Of a float32 model in eval mode."""
    with torch.no_grad():
        expected = model.double()(x_t.double(), torch.full((len(x_t),), timestep), label)
    model.float()
    assert_network_close(FrozenUNet(model)(x_t, timestep, label), expected)
