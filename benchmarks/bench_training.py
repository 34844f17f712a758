"""One step of training: a batch drawn, forward, loss, backward, clipping, fused AdamW, the moving average of the weights.

Ours is the Trainer's. diffusers' is what one writes with its module, its scheduler and its EMAModel. "tiny" is the preset of that
name with conditioning "scale_shift", which diffusers has too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measuring import DEVICE, SECONDS_OF_NETWORK, compiled, measure
from benchmarks.networks import DIFFUSION, NETWORKS, Network
from benchmarks.tables import TRAINING, TRAINING_NAMES
from fastcond.config import DataConfig, RunConfig, TrainingConfig, UNetConfig
from fastcond.data import LabelledImages
from fastcond.diffusion import diffusion_loss
from fastcond.presets import PRESETS
from fastcond.training import RunDirectory, Trainer
from fastcond.training.batches import Batch
from tests import tolerances

diffusers = pytest.importorskip("diffusers")

TINY = UNetConfig(image_size=(16, 16), num_classes=5, **{**PRESETS["tiny"].network, "conditioning": "scale_shift"})
CASES = {"16x16": (NETWORKS["16x16"], 32), "tiny": (Network("tiny", TINY), 64)}
IMAGES, SETTINGS = 512, TrainingConfig(steps=1000)
CHECKED = 8  # images of the batch on which gradients are compared


def data_of(network: Network) -> LabelledImages:
    """Images of noise; what is on them takes no time."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (IMAGES, *network.config.image_size, 3), dtype=np.uint8)
    return LabelledImages(images, np.arange(IMAGES) % network.config.num_classes, tuple("abcde"))


def trainer_of(network: Network, batch: int, folder: Path) -> Trainer:
    """The run of a new Trainer, with the weights that the benches share."""
    settings = TrainingConfig(steps=SETTINGS.steps, batch_size=batch)
    data = data_of(network)
    config, directory = RunConfig(network.config, DIFFUSION, settings, DataConfig("noise")), RunDirectory(folder)
    directory.create(config, data.class_names)
    trainer = Trainer(config, data, directory, DEVICE)
    for model in (trainer.model, trainer.average):
        model.load_state_dict(network.ours().state_dict())
    trainer.model.train()
    return trainer


def loss_of(trainer: Trainer, batch: Batch, denoiser: Callable[..., Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
    """The Trainer's loss of any network."""
    return diffusion_loss(
        denoiser,
        batch.x_0.to(dtype),
        batch.label,
        batch.timestep,
        batch.eps.to(dtype),
        alphas_cumprod=trainer.alphas_cumprod.to(dtype),
        weights=trainer.weights.to(dtype),
        prediction=DIFFUSION.prediction,
    )


def check_parity(trainer: Trainer, network: Network) -> None:
    """The gradients of our step and of diffusers' module, against that in float64."""
    batch = trainer.batches.draw(0, 0, CHECKED)

    def gradients(model: nn.Module, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        def denoiser(x: Tensor, timestep: Tensor, label: Tensor) -> Tensor:
            return model(x, timestep, label) if model is trainer.model else model(x, timestep, class_labels=label).sample

        loss = loss_of(trainer, batch, denoiser, dtype)
        return dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, list(model.parameters())), strict=True))

    theirs = network.theirs(trainer.model.state_dict()).to(DEVICE).train()
    pytorch = gradients(theirs)
    expected = gradients(theirs.double(), torch.float64)
    # Our convolutions are Winograd's, whose transforms multiply a rounding (tests/tolerances.py derives by how much).
    amplification = tolerances.WINOGRAD_AMPLIFICATION
    tolerances.assert_gradient_parity(gradients(trainer.model), pytorch, expected, torch.float32, amplification=amplification)


def our_step(network: Network, batch: int, folder: Path) -> Callable[[], Any]:
    trainer = trainer_of(network, batch, folder)

    def step() -> None:
        trainer._train_step(trainer.step / SETTINGS.steps)  # type: ignore[operator]
        trainer.step += 1

    return step


def their_step(network: Network, batch: int, way: str) -> Callable[[], Any]:
    """A step with diffusers, on the same number of images, labels dropped as often."""
    from diffusers.training_utils import EMAModel

    memory_format = torch.channels_last if way.endswith("channels_last") else torch.contiguous_format
    model = network.theirs(dict(network.ours().state_dict())).to(DEVICE, memory_format=memory_format).train()
    average = EMAModel(model.parameters(), decay=SETTINGS.ema_decay, foreach=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=SETTINGS.learning_rate, weight_decay=0.0, fused=True)
    scheduler = diffusers.DDPMScheduler(prediction_type="v_prediction")
    data = data_of(network)
    images, labels = torch.from_numpy(data.images).to(DEVICE), torch.from_numpy(data.labels).to(DEVICE)
    call = compiled(model) if way.endswith("compiled") else model

    def step() -> None:
        chosen = torch.randint(len(images), (batch,), device=DEVICE)
        x_0 = (images[chosen].permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(memory_format=memory_format)
        dropped = torch.rand(batch, device=DEVICE) < SETTINGS.label_dropout
        label = torch.where(dropped, network.config.null_label, labels[chosen])
        eps = torch.randn_like(x_0)
        timestep = torch.randint(scheduler.config.num_train_timesteps, (batch,), device=DEVICE)
        output = call(scheduler.add_noise(x_0, eps, timestep), timestep, class_labels=label).sample
        F.mse_loss(output, scheduler.get_velocity(x_0, eps, timestep)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), SETTINGS.clip_grad_norm, foreach=True)
        optimizer.step()
        optimizer.zero_grad()
        average.step(model.parameters())

    return step


@pytest.mark.timeout(900)
@pytest.mark.parametrize("way", TRAINING_NAMES)
@pytest.mark.parametrize("case", CASES)
def bench_training_step(benchmark: Any, case: str, way: str, tmp_path: Path) -> None:
    network, batch = CASES[case]
    if way == "ours":
        check_parity(trainer_of(network, batch, tmp_path / "checked"), network)
    started = time.perf_counter()
    step = our_step(network, batch, tmp_path / "run") if way == "ours" else their_step(network, batch, way)
    step()
    ready = time.perf_counter() - started
    measure(benchmark, TRAINING, f"{case}, batch {batch}", way, step, seconds=SECONDS_OF_NETWORK, prepare_s=round(ready, 2))
