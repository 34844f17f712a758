"""Training a network that predicts its variance too: the command line, what it writes, and what is drawn from it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastcond.config import DiffusionConfig
from fastcond.diffusion import NoiseSchedule, ddpm
from fastcond.engine import generate, step_table
from fastcond.interop import load_diffusers, save_diffusers
from fastcond.training import load_run
from tests.support.command_lines import assert_one_line, sample_here, train_here
from tests.support.tiny_runs import last_checkpoint, make_trainer, tiny_config

FLAGS = ("--data", "sprites", "--preset", "tiny", "--batch-size", 4, "--device", "cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps, of which the last three were resumed."""
    out = tmp_path_factory.mktemp("learned") / "run"
    learned = (*FLAGS, "--variance", "learned-range", "--conditioning", "bias", "--out", out)
    assert train_here(*learned, "--steps", 3) == 0
    assert train_here(*learned, "--steps", 6, "--resume") == 0
    return out


def learned_config(**training: Any) -> Any:
    config = tiny_config(**training)
    return dataclasses.replace(
        config,
        network=dataclasses.replace(config.network, out_channels=2),
        diffusion=DiffusionConfig(variance="learned_range"),
    )


def drawn(run: Path, *flags: Any) -> np.ndarray:
    out = run.parent / "-".join(["drawn", *map(str, flags)])
    assert sample_here("--run", run, "--label", "0,1", "--n", 2, "--steps", 4, "--device", "cpu", *flags, "--out", out) == 0
    with np.load(out / "samples.npz") as arrays:
        return np.array(arrays["images"])


def test_the_run_knows_what_it_is(run: Path) -> None:
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    assert config["diffusion"]["variance"] == "learned_range"
    assert (config["network"]["in_channels"], config["network"]["out_channels"]) == (3, 6)
    loaded = load_run(run)
    assert loaded.step == 6 and loaded.model.conv_out.out_channels == 6
    assert step_table(loaded.model, "ddpm", 4).learned_noise is not None


def test_ddpm_uses_it_and_ddim_does_not(run: Path) -> None:
    model = load_run(run).model
    images = drawn(run)
    assert images.shape == (4, 16, 16, 3)
    assert np.array_equal(images, drawn(run, "--variance", "learned_range"))
    learned = ddpm(NoiseSchedule.from_config(model.diffusion), 4, prediction="v", variance="learned_range")
    assert np.array_equal(images, generate(model, [0, 0, 1, 1], indices=[0, 1, 0, 1], sampler=learned))
    assert not np.array_equal(images, drawn(run, "--variance", "fixed_small"))
    before = drawn(run, "--sampler", "ddim")
    with torch.no_grad():
        model.conv_out.weight[3:].normal_()
    settings: dict[str, Any] = {"indices": [0, 1, 0, 1], "steps": 4}
    assert np.array_equal(before, generate(model, [0, 0, 1, 1], sampler="ddim", **settings))
    assert not np.array_equal(images, generate(model, [0, 0, 1, 1], sampler="ddpm", **settings))


def test_diffusers_is_told(run: Path, tmp_path: Path) -> None:
    model = load_run(run).model
    save_diffusers(model, tmp_path / "saved")
    scheduler = json.loads((tmp_path / "saved/scheduler/scheduler_config.json").read_text(encoding="utf-8"))
    assert scheduler["variance_type"] == "learned_range" and scheduler["_class_name"] == "DDPMScheduler"
    again = load_diffusers(tmp_path / "saved")
    assert again.config.out_channels == 6 and step_table(again, "scheduler", 4).learned_noise is not None
    with pytest.raises(ValueError, match="DDIMScheduler takes no network that predicts a variance"):
        save_diffusers(model, tmp_path / "other", scheduler="DDIMScheduler")


def test_a_resumed_run_keeps_its_variance(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = train_here(*FLAGS, "--out", run, "--resume", "--variance", "fixed", "--steps", 7)
    assert_one_line(code, capsys, "--variance fixed differs from the run's learned_range")


def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    assert make_trainer(tmp_path / "whole", learned_config()).train()
    first = make_trainer(tmp_path / "parts", learned_config())
    first.on_progress = lambda progress: first.stop() if progress.step == 5 else None
    assert not first.train()
    second = make_trainer(tmp_path / "parts", learned_config())
    second.resume()
    assert second.train()
    assert last_checkpoint(tmp_path / "whole") == last_checkpoint(tmp_path / "parts")


def test_variance_is_learned(tmp_path: Path) -> None:
    """The head that begins at zero moves, and the bound falls."""
    trainer = make_trainer(tmp_path / "run", learned_config(steps=150))
    assert trainer.bound is not None
    before = bits(trainer)
    trainer.train()
    assert float(trainer.model.conv_out.weight[1:].detach().abs().max()) > 0
    assert bits(trainer) < 0.7 * before


def bits(trainer: Any) -> float:
    """The bound's mean over one batch of every timestep drawn."""
    batch = trainer.batches.draw(0, 0, 8)
    a = trainer.alphas_cumprod[batch.timestep][:, None, None, None]
    x_t = a.sqrt() * batch.x_0 + (1 - a).sqrt() * batch.eps
    with torch.no_grad():
        output, v = trainer.model.eval()(x_t, batch.timestep, batch.label).chunk(2, dim=1)
        found = trainer.bound(batch.x_0, x_t, batch.timestep, output, v)
    trainer.model.train()
    return float(found.mean())


def test_channels_and_variance_must_agree(tmp_path: Path) -> None:
    config = dataclasses.replace(learned_config(), diffusion=DiffusionConfig())
    with pytest.raises(ValueError, match="has 2 output channels; variance fixed needs 1"):
        make_trainer(tmp_path, config)
    with pytest.raises(ValueError, match="needs 2 timesteps at least"):
        DiffusionConfig(variance="learned_range", num_timesteps=1)
