"""Small random networks of diffusers as others save them, to load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.support.networks import perturb

_SMALL: dict[str, Any] = {"sample_size": 8, "layers_per_block": 1, "block_out_channels": (16, 32), "norm_num_groups": 8}


def plain_network(**changes: Any) -> Any:
    """A UNet2DModel of four classes."""
    import diffusers

    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    torch.manual_seed(0)
    network = diffusers.UNet2DModel(**{**_SMALL, **blocks, "attention_head_dim": 8, "num_class_embeds": 4, **changes}).eval()
    perturb(network)
    return network


def condition_network(**changes: Any) -> Any:
    """A UNet2DConditionModel like the blog's, told tokens of 12 numbers."""
    import diffusers

    blocks = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    sizes = {"in_channels": 3, "out_channels": 3, "encoder_hid_dim": 12, "cross_attention_dim": 24, "attention_head_dim": 4}
    torch.manual_seed(0)
    network = diffusers.UNet2DConditionModel(**{**_SMALL, **blocks, **sizes, **changes}).eval()
    perturb(network)
    return network


def label_mlp(*layers: nn.Module) -> nn.Sequential:
    """The blog's, of five classes, without what puts a dimension in."""
    return nn.Sequential(*(layers or (nn.Linear(5, 10), nn.GELU(), nn.Linear(10, 12)))).eval()


def save_blog(folder: Path, mlp_name: str, mlp: nn.Sequential | None = None) -> Path:
    """conditional_unet.pth, a folder, and the label MLP's file under a name, which may be inside that folder."""
    import safetensors.torch

    condition_network().save_pretrained(folder / "conditional_unet.pth")
    weights = (mlp or label_mlp()).state_dict()
    if mlp_name.endswith(".safetensors"):
        safetensors.torch.save_file(weights, folder / mlp_name)
    else:
        torch.save(weights, folder / mlp_name)
    return folder / "conditional_unet.pth"
