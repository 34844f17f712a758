"""Networks and runs that train in a second."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastcond.config import DataConfig, DiffusionConfig, RunConfig, TrainingConfig, UNetConfig
from fastcond.data import LabelledImages
from fastcond.nn import ConditionalUNet
from fastcond.training import RunDirectory, Trainer
from fastcond.training.run_directory import Checkpoint
from tests.support.networks import perturb

CLASS_NAMES = ("dark", "bright")


def bright_and_dark(count: int = 24) -> LabelledImages:
    """8x8 gray images: label 0 dark, label 1 bright, with a little texture."""
    labels = np.arange(count) % 2
    texture = np.random.default_rng(0).integers(0, 40, (count, 8, 8, 1))
    return LabelledImages((labels[:, None, None, None] * 200 + texture).astype(np.uint8), labels, CLASS_NAMES)


def tiny_config(**training: Any) -> RunConfig:
    """A two-level network of a few thousand parameters; dropout on, so that its randomness is tested too."""
    return RunConfig(
        network=UNetConfig(
            image_size=(8, 8),
            num_classes=2,
            in_channels=1,
            out_channels=1,
            block_out_channels=(8, 16),
            layers_per_block=1,
            attention_resolutions=(4,),
            attention_head_dim=8,
            norm_num_groups=4,
            dropout=0.1,
        ),
        diffusion=DiffusionConfig(),
        training=dataclasses.replace(
            TrainingConfig(steps=12, batch_size=8, warmup_steps=4, learning_rate=2e-3),
            **({"steps": None} if "minutes" in training else {}),
            **training,
        ),
        data=DataConfig(source="made by the test"),
    )


def write_run(folder: Path, *, seed: int = 0, steps: Sequence[int] = (1,), class_names: tuple[str, ...] = CLASS_NAMES) -> Path:
    """An untrained run to sample from, whose every layer acts, with other weights at each of its steps."""
    config, directory = tiny_config(), RunDirectory(folder)
    directory.create(config, class_names)
    torch.manual_seed(seed)
    model = ConditionalUNet(config.network, config.diffusion)
    for step in steps:
        perturb(model, seed)
        directory.write_checkpoint(step, Checkpoint({"ema": model.state_dict()}, {"step": step}))
    return folder


def last_checkpoint(run: Path) -> dict[str, str]:
    """Name of the last checkpoint and of each of its tensor files, with the sha256 sum of every byte.

    Sums and not bytes, because pytest would spell out how megabytes differ.
    """
    folder = sorted(path for path in (run / "checkpoints").iterdir() if path.name.isdecimal())[-1]
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) == 3
    return {f"{folder.name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def make_trainer(folder: Path, config: RunConfig | None = None, data: LabelledImages | None = None, **extra: Any) -> Trainer:
    """A trainer in a fresh run directory, or in the one that is there."""
    data, directory = data or bright_and_dark(), RunDirectory(folder)
    if directory.exists():
        config = directory.read_config() if config is None else config
    else:
        config = config or tiny_config()
        directory.create(config, data.class_names)
    return Trainer(config, data, directory, torch.device("cpu"), **extra)
