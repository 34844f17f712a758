"""The blog's twenty images, by the pipeline that its author wrote with diffusers and by ours, in a process of its own.

    python -m benchmarks.blog_run PEER NETWORK FOLDER THREADS       FOLDER as `BlogNetwork.write` leaves it

It loads, draws two steps and prints a line. For every line that it is sent it draws twenty images, writes them beside FOLDER and
prints a line. At the end of its input it prints what it took as JSON.

The networks are those of vroger11/diffusers-tutorials, 02 and 03: their configurations and their label MLPs' shapes, with random
weights. 02 is sampled with the published run's 200 steps of DDPM, 03 with 50 of DDIM's 1000. 03 predicts v here, not eps: where
1000 timesteps end in noise, an untrained network that predicts eps makes chaotic trajectories, and diffusers' two memory formats
end in other images already.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.guided_run import IMAGES, own_output, peak_mib

CLASSES, OF_EACH, SEED, WARM_UP_STEPS = 5, 4, 0, 2
_PERTURBATION = 0.02  # of every weight, so that none is idle
_TOKEN = 64


@dataclass(frozen=True)
class BlogNetwork:
    """unet: what differs from UNet2DConditionModel's defaults. label_layers: of the MLP, which puts in a dimension too.

    scheduler: its class in diffusers; timesteps: what it was trained with; prediction: what the network is taken to predict;
    steps: of a run.
    """

    unet: dict[str, Any]
    label_layers: tuple[tuple[str, tuple[float, ...]], ...]
    scheduler: str
    timesteps: int
    prediction: str
    steps: int

    @property
    def case(self) -> str:
        return f"{self.scheduler.removesuffix('Scheduler')}, {self.steps} steps"

    def label_mlp(self) -> Any:
        """Freshly initialised, in eval mode."""
        from torch import nn

        return nn.Sequential(*(getattr(nn, kind)(*arguments) for kind, arguments in self.label_layers)).eval()

    def write(self, folder: Path) -> None:
        """As a pipeline's folder of diffusers, with the MLP beside the network as the blog has it."""
        import diffusers
        import torch

        from tests.support.networks import perturb

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            unet, mlp = diffusers.UNet2DConditionModel(**self.unet), self.label_mlp()
        perturb(unet, size=_PERTURBATION)
        unet.save_pretrained(folder / "unet")
        scheduler = getattr(diffusers, self.scheduler)(num_train_timesteps=self.timesteps, prediction_type=self.prediction)
        scheduler.save_pretrained(folder / "scheduler")
        (folder / "model_index.json").write_text("{}", encoding="utf-8")
        torch.save(mlp.state_dict(), folder / "emb_net.pth")


def _unet(channels: tuple[int, ...], **more: Any) -> dict[str, Any]:
    """A UNet2DConditionModel on 16x16 RGB whose coarsest level attends to a label token of 64 numbers."""
    plain = len(channels) - 1
    return {
        "sample_size": 16,
        "in_channels": 3,
        "out_channels": 3,
        "layers_per_block": 2,
        "block_out_channels": channels,
        "down_block_types": ("DownBlock2D",) * plain + ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",) + ("UpBlock2D",) * plain,
        "encoder_hid_dim": _TOKEN,
        **more,
    }


BLOG_NETWORKS = {
    "02": BlogNetwork(
        _unet((64, 128)),
        (("Linear", (CLASSES, 64)), ("GELU", ()), ("Linear", (64, _TOKEN))),
        "DDPMScheduler",
        timesteps=200,
        prediction="epsilon",
        steps=200,
    ),
    "03": BlogNetwork(
        _unet((64, 128, 256), dropout=0.2),
        (("Linear", (CLASSES, 32)), ("Dropout", (0.1,)), ("GELU", ()), ("Linear", (32, _TOKEN))),
        "DDIMScheduler",
        timesteps=1000,
        prediction="v_prediction",
        steps=50,
    ),
}


def by_fastcond(folder: Path, network: BlogNetwork) -> Callable[[int], np.ndarray]:
    """Ours: steps -> uint8 [20, 16, 16, 3]."""
    import torch

    from fastcond import Pipeline

    pipeline, labels = Pipeline.from_pretrained(folder), one_hot_labels()

    def draw(steps: int) -> np.ndarray:
        images = pipeline(labels, num_inference_steps=steps, generator=torch.Generator().manual_seed(SEED)).images
        return np.stack([np.asarray(image) for image in images])

    return draw


def by_diffusers(folder: Path, network: BlogNetwork, channels_last: bool = False) -> Callable[[int], np.ndarray]:
    """The blog's: steps -> uint8 [20, 16, 16, 3]."""
    import diffusers
    import torch

    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet").eval().to(memory_format=memory_format)
    scheduler = getattr(diffusers, network.scheduler).from_pretrained(folder / "scheduler")
    mlp, labels = network.label_mlp(), one_hot_labels()
    mlp.load_state_dict(torch.load(folder / "emb_net.pth", "cpu", weights_only=True))

    @torch.no_grad()
    def draw(steps: int) -> np.ndarray:
        generator = torch.Generator().manual_seed(SEED)
        x = torch.randn(len(labels), 3, 16, 16, generator=generator)
        scheduler.set_timesteps(steps)
        token = mlp(labels).unsqueeze(1)
        for t in scheduler.timesteps:
            output = unet(x.contiguous(memory_format=memory_format), t, encoder_hidden_states=token).sample
            x = scheduler.step(output, t, x, generator=generator).prev_sample
        pixels: np.ndarray = ((x / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        return pixels

    return draw


def one_hot_labels() -> Any:
    """Of the twenty images: float32 [20, 5]."""
    import torch

    return torch.eye(CLASSES).repeat_interleave(OF_EACH, dim=0)


PIPELINES: dict[str, Callable[[Path, BlogNetwork], Callable[[int], np.ndarray]]] = {
    "ours": by_fastcond,
    "diffusers": by_diffusers,
    "diffusers, channels_last": lambda folder, network: by_diffusers(folder, network, channels_last=True),
}


def main(peer: str, name: str, folder: str, threads: int) -> None:
    answers = own_output()
    import torch

    if peer == "ours":
        import fastcond.interop.pipeline  # noqa: F401  (what is imported is not loading)
    else:
        import diffusers  # noqa: F401
    torch.set_num_threads(threads)
    network = BLOG_NETWORKS[name]
    started = time.perf_counter()
    draw = PIPELINES[peer](Path(folder), network)
    draw(WARM_UP_STEPS)
    prepared = time.perf_counter() - started
    print(file=answers)
    for _ in sys.stdin:
        images = draw(network.steps)
        np.save(IMAGES.format(folder, peer), images)
        print(file=answers)
    print(json.dumps({"prepare_s": prepared, "peak_mib": peak_mib()}), file=answers)


if __name__ == "__main__":
    main(*sys.argv[1:4], threads=int(sys.argv[4]))
