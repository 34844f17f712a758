"""diffusers' UNet2DConditionModel with the blog's label MLP beside it, written and told a label as the blog does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.networks import perturb

SMALL: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 1,
    "block_out_channels": (16, 32),
    "norm_num_groups": 8,
    "encoder_hid_dim": 12,
    "cross_attention_dim": 24,
    "attention_head_dim": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}


class Told(nn.Module):
    """(x_t, timestep, label rows [B, K]) -> output: diffusers' network on the token that the label MLP makes."""

    def __init__(self, unet: Any, mlp: nn.Module) -> None:
        super().__init__()
        self.unet, self.mlp = unet, mlp

    def forward(self, x: Tensor, timestep: Tensor, rows: Tensor) -> Tensor:
        output: Tensor = self.unet(x, timestep, encoder_hidden_states=self.mlp(rows)[:, None]).sample
        return output

    def save(self, folder: Path) -> Path:
        """Write both files."""
        self.unet.save_pretrained(folder / "unet")
        torch.save(self.mlp.state_dict(), folder / "unet" / "emb_net.pth")
        return folder / "unet"


def small_told(**changes: Any) -> Told:
    """A network of a few thousand parameters for five classes, every layer of which acts, in eval mode."""
    import diffusers

    torch.manual_seed(0)
    told = Told(
        diffusers.UNet2DConditionModel(**{**SMALL, **changes}), nn.Sequential(nn.Linear(5, 10), nn.GELU(), nn.Linear(10, 12))
    )
    perturb(told)
    return told.eval()


def blog_told(folder: Path, name: str) -> Told:
    """The blog's network of that name with random weights, and its own label MLP."""
    import diffusers

    unet = diffusers.UNet2DConditionModel.from_config(json.loads((folder / f"{name}.config.json").read_text()))
    perturb(unet, size=0.02)
    file = folder / ("better_emb_net.pth" if name.startswith("better") else "emb_net.pth")
    state = torch.load(file, "cpu", weights_only=True)
    first, last = (nn.Linear(*state[f"{layer}.weight"].T.shape) for layer in sorted({int(key.split(".")[0]) for key in state}))
    # In tutorial 03 a dropout stands between them.
    between = [nn.Dropout(0.1)] if "3.weight" in state else []
    mlp = nn.Sequential(first, *between, nn.GELU(), last)
    mlp.load_state_dict(state)
    return Told(unet, mlp).eval()
