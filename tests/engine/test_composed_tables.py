"""Tables with a threshold or a learned variance: composed steps that a CUDA graph could hold, and `generate` of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fastcond.engine import generate
from fastcond.engine.frozen_unet import FrozenUNet
from fastcond.engine.sampling_step import SamplingStep
from tests.support.capture_linter import lint_capture
from tests.support.graph_double import OperationRecorder
from tests.support.graphed import as_on_a_gpu
from tests.support.networks import small_unet
from tests.support.schedulers import table_of
from tests.tolerances import GRAY_LEVELS

DDPM = {"_class_name": "DDPMScheduler"}
TABLES: dict[str, dict[str, Any]] = {
    "learned": {**DDPM, "variance_type": "learned"},
    "learned_range": {**DDPM, "variance_type": "learned_range"},
    "threshold": {**DDPM, "thresholding": True, "sample_max_value": 5.0},
    "not from 1": {"_class_name": "EulerDiscreteScheduler"},
}


@pytest.mark.parametrize("own_noise", [False, True])
@pytest.mark.parametrize("kind", TABLES)
def test_their_steps_can_be_captured(kind: str, own_noise: bool) -> None:
    table = table_of(TABLES[kind], 10)
    model = small_unet(out_channels=6 if kind.startswith("learned") else 3).eval()
    label = torch.tensor([0, 1])
    denoiser = FrozenUNet(model, use_native=False).denoiser(table.timesteps, torch.cat([label, torch.full_like(label, 3)]))
    seeds = torch.tensor([[5, 0], [5, 1]])
    noise = torch.randn((2, 3, 8, 8)) if own_noise else None
    step = SamplingStep(denoiser, table, (3, 8, 8), seeds=seeds, guidance=torch.tensor([1.0, 2.0]), noise=noise)

    def run() -> None:
        step.start()
        step(True)
        step(False)

    lint_capture(run, step.static_tensors)
    assert step.row.tolist() == [2]


def test_a_tables_threshold_is_generates() -> None:
    """s without an upper bound, by either way."""
    model = small_unet().eval()
    settings = {**TABLES["threshold"], "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1e6}
    options: dict[str, Any] = {"guidance": 4.0, "seed": 3}
    by_table = generate(model, [0, 1], sampler=table_of(settings, 6), **options)
    by_option = generate(model, [0, 1], sampler=table_of(DDPM, 6), dynamic_threshold=0.9, **options)
    clamped = generate(model, [0, 1], sampler=table_of(DDPM, 6), **options)
    assert np.abs(by_table.astype(int) - by_option.astype(int)).max() <= GRAY_LEVELS
    assert not np.array_equal(by_table, clamped)


def test_a_run_starts_at_the_tables_scale() -> None:
    table = table_of({"_class_name": "EulerDiscreteScheduler", "num_train_timesteps": 20}, 5)
    assert 0 < table.initial_scale < 0.5, "20 timesteps of small betas leave most of the signal"
    model, label = small_unet().eval(), torch.tensor([0])
    denoiser = FrozenUNet(model).denoiser(table.timesteps, torch.cat([label, torch.full_like(label, 3)]))
    noise = torch.randn((1, 3, 8, 8))
    step = SamplingStep(denoiser, table, (3, 8, 8), seeds=torch.tensor([[0, 0]]), guidance=torch.ones(1), noise=noise)
    torch.testing.assert_close(step.x, noise * table.initial_scale)


@pytest.mark.parametrize("rng", ["philox", "torch"])
@pytest.mark.parametrize("kind", [*TABLES, "fractional timesteps"])
def test_on_a_gpu_they_are_recorded_unless_the_noise_is_torchs(kind: str, rng: Any) -> None:
    """Whose every row is drawn on the host, and executed."""
    fractional = {"_class_name": "HeunDiscreteScheduler", "timestep_spacing": "linspace"}
    table = table_of(TABLES.get(kind, fractional), 4)
    model = small_unet(out_channels=6 if kind.startswith("learned") else 3).eval()
    options: dict[str, Any] = {"sampler": table, "guidance": 2.0, "rng": rng}
    recorder = OperationRecorder()
    with as_on_a_gpu(recorder):
        images = generate(model, [0, 1], **options)
    assert recorder.replays == (table.num_rows if rng == "philox" else 0)
    assert np.abs(images.astype(int) - generate(model, [0, 1], **options).astype(int)).max() <= GRAY_LEVELS
