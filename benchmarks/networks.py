"""The networks on which whole evaluations and runs are timed: the same weights for us and for everyone else.

They are networks that diffusers has too (conditioning "scale_shift"), with random weights that leave no layer idle. They predict
v: an untrained network that predicts eps makes chaotic trajectories, so that two that differ in rounding alone agree on no image.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastcond.config import DiffusionConfig, UNetConfig

STEPS, GUIDANCE, SEED = 50, 2.5, 3
DIFFUSION = DiffusionConfig(prediction="v")
_PERTURBATION = 0.02  # of every weight; zero-initialised layers consist of it


@dataclass(frozen=True)
class Network:
    """A network by the name of its image size."""

    name: str
    config: UNetConfig

    def ours(self, weights: dict[str, Tensor] | None = None) -> nn.Module:
        """Our ConditionalUNet in eval mode, with these weights or with the random ones that the benches share."""
        from fastcond.nn import ConditionalUNet

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = ConditionalUNet(self.config, DIFFUSION)
        if weights is not None:
            model.load_state_dict(weights)
        else:
            from tests.support.networks import perturb

            perturb(model, size=_PERTURBATION)
        return model.eval()

    def theirs(self, weights: dict[str, Tensor]) -> nn.Module:
        """diffusers' UNet2DModel in eval mode."""
        from tests.support.diffusers_twin import diffusers_twin

        model = diffusers_twin(self.config)
        model.load_state_dict(weights)
        return model.eval()  # type: ignore[no-any-return]

    def labels(self, images: int) -> Tensor:
        """int64 [images], every class in turn."""
        return torch.arange(images) % self.config.num_classes

    def noise(self, images: int) -> Tensor:
        """What our sampler begins with, float32 [images, C, H, W]."""
        from fastcond.ops import philox_normal

        shape = (self.config.in_channels, *self.config.image_size)
        return philox_normal(torch.stack((torch.full((images,), SEED), torch.arange(images)), dim=1), shape)

    def write(self, path: Path, images: int) -> None:
        """The weights and the noise of a run, for a process of its own."""
        from safetensors.torch import save_file

        save_file({**self.ours().state_dict(), NOISE: self.noise(images).contiguous()}, path)


NOISE = "noise"
NETWORKS = {
    network.name: network
    for network in (
        Network(
            "16x16",
            UNetConfig(
                image_size=(16, 16),
                num_classes=5,
                block_out_channels=(64, 128),
                attention_resolutions=(8,),
                attention_head_dim=8,
                conditioning="scale_shift",
            ),
        ),
        Network(
            "32x32",
            UNetConfig(
                image_size=(32, 32),
                num_classes=10,
                block_out_channels=(128, 256, 256),
                attention_resolutions=(16,),
                attention_head_dim=64,
                conditioning="scale_shift",
            ),
        ),
        Network(
            "64x64",
            UNetConfig(
                image_size=(64, 64),
                num_classes=10,
                block_out_channels=(64, 128, 256, 256),
                attention_resolutions=(16, 8),
                attention_head_dim=64,
                conditioning="scale_shift",
            ),
        ),
    )
}


def read(path: Path) -> tuple[dict[str, Tensor], Tensor]:
    """What `Network.write` wrote: (weights, noise)."""
    from safetensors.torch import load_file

    tensors: dict[str, Any] = load_file(path)
    return {name: value for name, value in tensors.items() if name != NOISE}, tensors[NOISE]
