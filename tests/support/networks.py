"""Small networks whose every layer acts: what starts at zero is given weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastcond.config import DiffusionConfig, UNetConfig
from fastcond.nn import ConditionalUNet

SMALL: dict[str, Any] = {
    "image_size": (8, 8),
    "num_classes": 3,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "attention_resolutions": (4,),
    "attention_head_dim": 8,
    "norm_num_groups": 4,
}

# Changes that make it one of Skip blocks, with attention both ways.
SKIP_BLOCKS: dict[str, Any] = {
    "block_out_channels": (32, 64),
    "norm_num_groups": None,
    "conditioning": "bias",
    "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
    "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
}


def small_config(**changes: Any) -> UNetConfig:
    return UNetConfig(**{**SMALL, **changes})


def perturb(module: nn.Module, seed: int = 0, size: float = 0.1) -> None:
    """Add noise to every parameter, so that zero-initialised layers pass signal and gradient."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def small_unet(diffusion: DiffusionConfig | None = None, seed: int = 0, **changes: Any) -> ConditionalUNet:
    """A perturbed network of a few thousand parameters, in training mode."""
    torch.manual_seed(seed)
    model = ConditionalUNet(small_config(**changes), diffusion)
    perturb(model, seed)
    return model
