"""The blog's two real networks with random weights and its own label MLPs, against its system written with diffusers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fastcond.engine import generate
from fastcond.engine.frozen_unet import FrozenUNet
from fastcond.interop import load_diffusers
from tests.support.label_networks import blog_told
from tests.tolerances import GRAY_LEVELS, assert_network_close

STEPS, SEED = 10, 0
# Tutorial 02 trains and samples with DDPM of 200 timesteps, tutorial 03 with DDIM of 1000.
SYSTEMS = {"conditional_unet": ("DDPMScheduler", 200), "better_conditional_unet": ("DDIMScheduler", 1000)}


@pytest.fixture
def blog(shared_data: Path) -> Path:
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    return shared_data / "blog"


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_same_prediction(blog: Path, tmp_path: Path, name: str) -> None:
    """To 1e-5 of the largest output, plain and frozen, at both ends of its timesteps and between."""
    told = blog_told(blog, name)
    model = load_diffusers(told.save(tmp_path))
    generator = torch.Generator().manual_seed(SEED)
    T = SYSTEMS[name][1]
    timestep = torch.tensor([0, T // 3, T // 2, T - 1])
    x, label = torch.randn(4, 3, 16, 16, generator=generator), torch.tensor([0, 2, 3, 4])
    soft = torch.rand(4, 5, generator=generator)
    with torch.no_grad():
        expected = told(x, timestep, nn.functional.one_hot(label, 5).float())
        assert_network_close(model(x, timestep, label), expected)
        assert_network_close(model(x, timestep, soft), told(x, timestep, soft))
        for row in range(len(timestep)):
            denoiser = FrozenUNet(model).denoiser(timestep[row : row + 1], label[row : row + 1])
            assert_network_close(denoiser(x[row : row + 1], torch.tensor([0])), expected[row : row + 1])


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_same_twenty_images_by_its_own_scheduler(blog: Path, tmp_path: Path, name: str) -> None:
    """Four of each of the five classes, as its loop draws them from one generator."""
    import diffusers

    kind, T = SYSTEMS[name]
    told, scheduler = blog_told(blog, name), getattr(diffusers, kind)(num_train_timesteps=T)
    rows = torch.eye(5).repeat_interleave(4, dim=0)
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(20, 3, 16, 16, generator=generator)
    scheduler.set_timesteps(STEPS)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(told(x, t, rows), t, x, generator=generator).prev_sample
    expected = ((x / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy()
    told.save(tmp_path)
    scheduler.save_pretrained(tmp_path / "scheduler")
    (tmp_path / "model_index.json").write_text("{}")
    model = load_diffusers(tmp_path)
    assert model.diffusion.num_timesteps == T
    drawn = generate(model, rows, sampler="scheduler", steps=STEPS, rng="torch", seed=SEED)
    assert np.abs(drawn - expected).max() <= GRAY_LEVELS
