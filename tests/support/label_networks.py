"""diffusers' UNet2DConditionModel with the blog's label MLP beside it, written and told a label as the blog does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.foreign import condition_network, label_mlp
from tests.support.networks import perturb


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
    told = Told(condition_network(**changes), label_mlp())  # which goes on with the network's seed
    perturb(told.mlp)
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
