"""Networks with the process and training that suit them, by name. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """A network, and the process and training that suit it: fields of `UNetConfig`, `DiffusionConfig` and `TrainingConfig`."""

    network: Mapping[str, Any] = field(default_factory=dict)
    diffusion: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)


PRESETS: Mapping[str, Preset] = {
    # Minutes on a laptop's CPU, up to 32x32.
    "tiny": Preset(
        network={
            "block_out_channels": (32, 64, 64),
            "layers_per_block": 1,
            "attention_resolutions": (4,),
            "norm_num_groups": 8,
        },
        # On small images linear betas leave next to no signal in the last timesteps (Nichol & Dhariwal 2021, section 3.2), which
        # a short training cannot afford.
        diffusion={"schedule": "cosine", "prediction": "v"},
        training={"steps": 10_000, "batch_size": 32, "learning_rate": 1e-3, "warmup_steps": 100},
    ),
    # The size of the blog and of the sprite course: 16x16, about 5M parameters.
    "sprites": Preset(
        network={"block_out_channels": (64, 128), "layers_per_block": 2, "attention_resolutions": (8,)},
        training={"steps": 50_000, "batch_size": 128, "learning_rate": 5e-4, "warmup_steps": 500},
    ),
    # Ho et al. 2020, appendix B: 35.7M parameters there.
    "cifar10": Preset(
        network={
            "block_out_channels": (128, 256, 256, 256),
            "layers_per_block": 2,
            "attention_resolutions": (16,),
            "attention_head_dim": 256,
            "conditioning": "bias",
            "dropout": 0.1,
        },
        training={
            "steps": 500_000,
            "batch_size": 128,
            "learning_rate": 2e-4,
            "warmup_steps": 5000,
            "lr_schedule": "constant",
        },
    ),
    # Dhariwal & Nichol 2021, table 11, ImageNet 64x64: 296M parameters there.
    "imagenet64": Preset(
        network={
            "block_out_channels": (192, 384, 576, 768),
            "layers_per_block": 3,
            "attention_resolutions": (32, 16, 8),
            "attention_head_dim": 64,
            "conditioning": "scale_shift",
            "dropout": 0.1,
            "resample": "resnet",
        },
        training={
            "steps": 500_000,
            "batch_size": 256,
            "learning_rate": 1e-4,
            "warmup_steps": 5000,
            "lr_schedule": "constant",
        },
    ),
}


def choose_preset(image_size: tuple[int, int], device_type: str) -> str:
    """Name of the preset for `--preset auto`: the largest that suits the images and trains in reasonable time on the device."""
    longest = max(image_size)
    if device_type == "cpu":
        return "tiny"
    if longest <= 24:
        return "sprites"
    if longest <= 48:
        return "cifar10" if all(side % 8 == 0 for side in image_size) else "sprites"
    return "imagenet64"
