"""Noise schedules: closed forms, diffusers' betas, the 1000/T rescale, zero terminal SNR, warnings."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from fastcond.config import DiffusionConfig
from fastcond.diffusion import NoiseSchedule
from tests.tolerances import FP32_BETAS, FP32_CUMPROD, FP64


def betas_of(schedule: NoiseSchedule) -> torch.Tensor:
    a = torch.cat([torch.ones(1, dtype=torch.float64), schedule.alphas_cumprod])
    return 1 - a[1:] / a[:-1]


def scheduler(**options: Any) -> Any:
    return pytest.importorskip("diffusers").DDPMScheduler(num_train_timesteps=1000, **options)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (NoiseSchedule.linear, {"beta_schedule": "linear"}),
        (NoiseSchedule.cosine, {"beta_schedule": "squaredcos_cap_v2"}),
    ],
)
def test_betas_are_diffusers(ours: Any, theirs: dict[str, Any]) -> None:
    expected = scheduler(**theirs)
    torch.testing.assert_close(betas_of(ours(1000)), expected.betas.double(), **FP32_BETAS)
    torch.testing.assert_close(ours(1000).alphas_cumprod, expected.alphas_cumprod.double(), **FP32_CUMPROD)


@pytest.mark.parametrize(("schedule", "theirs"), [("linear", "linear"), ("cosine", "squaredcos_cap_v2")])
def test_zero_terminal_snr_is_diffusers(schedule: Any, theirs: str) -> None:
    config = DiffusionConfig(schedule=schedule, zero_terminal_snr=True, prediction="v")
    a = NoiseSchedule.from_config(config).alphas_cumprod
    expected = scheduler(beta_schedule=theirs, rescale_betas_zero_snr=True).alphas_cumprod.double()
    # diffusers replaces the last alphas_cumprod, 0, by 2^-24.
    torch.testing.assert_close(a[:-1], expected[:-1], **FP32_CUMPROD)
    assert a[-1] == 0 and a[0] == pytest.approx(getattr(NoiseSchedule, schedule)(1000).alphas_cumprod[0].item())


@pytest.mark.parametrize("T", [200, 1000, 4000])
def test_linear_is_the_product_of_its_betas(T: int) -> None:
    betas = np.linspace(1e-4, 0.02, T) * 1000 / T
    a = NoiseSchedule.linear(T).alphas_cumprod.numpy()
    np.testing.assert_allclose(a, np.cumprod(1 - betas), **FP64)


@pytest.mark.parametrize("T", [50, 200, 500, 1000, 4000])
def test_the_rescale_ends_every_run_in_noise(T: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert NoiseSchedule.linear(T).alphas_cumprod[-1] < 1e-4


def test_cosine_is_its_closed_form_until_betas_are_clipped() -> None:
    t = (np.arange(1, 1001) / 1000 + 0.008) / 1.008
    closed = np.cos(t * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    schedule = NoiseSchedule.cosine(1000)
    np.testing.assert_allclose(schedule.alphas_cumprod[:-1].numpy(), closed[:-1], **FP64)
    assert betas_of(schedule)[-1].item() == pytest.approx(0.999)


@pytest.mark.parametrize("T", [2, 5, 20, 1000])
def test_schedules_of_any_length_fall(T: int) -> None:
    for schedule in (NoiseSchedule.linear(T), NoiseSchedule.cosine(T)):
        assert schedule.num_timesteps == T and schedule.alphas_cumprod.dtype == torch.float64


def test_two_hundred_plain_linear_steps_leave_signal_and_warn() -> None:
    """alphas_cumprod 0.132: 13% of the signal's power is left where sampling starts from none."""
    with pytest.warns(UserWarning, match=r"last of 200 timesteps keeps alphas_cumprod = 0\.132"):
        schedule = NoiseSchedule.linear(200, rescale=False)
    assert schedule.alphas_cumprod[-1].item() == pytest.approx(0.132, abs=5e-4)
    with pytest.warns(UserWarning, match=r"0\.00635"):
        NoiseSchedule.from_config(DiffusionConfig(num_timesteps=500, rescale_linear_betas=False))


def test_nothing_warns_where_the_signal_is_removed() -> None:
    config = DiffusionConfig(num_timesteps=200, rescale_linear_betas=False, zero_terminal_snr=True, prediction="x_0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert NoiseSchedule.from_config(config).alphas_cumprod[-1] == 0


def test_signal_to_noise() -> None:
    schedule = NoiseSchedule(torch.tensor([0.9, 0.5, 0.0], dtype=torch.float64))
    assert schedule.signal_to_noise().tolist() == pytest.approx([9, 1, 0])


@pytest.mark.parametrize(
    ("values", "dtype", "message"),
    [
        ([0.9, 0.5], torch.float32, r"torch.float32 \[2\]; float64 \[T\]"),
        ([[0.9, 0.5]], torch.float64, r"\[1, 2\]"),
        ([], torch.float64, r"\[0\]"),
        ([0.5, 0.9], torch.float64, "fall strictly"),
        ([0.5, 0.5], torch.float64, "fall strictly"),
        ([1.1, 0.5], torch.float64, "fall strictly"),
        ([0.5, -0.1], torch.float64, "fall strictly"),
        ([float("nan"), 0.1], torch.float64, "fall strictly"),
    ],
)
def test_what_is_no_schedule_is_refused(values: list[Any], dtype: torch.dtype, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoiseSchedule(torch.tensor(values, dtype=dtype))


def test_one_timestep_cannot_end_in_pure_noise() -> None:
    with pytest.raises(ValueError, match="one timestep"):
        NoiseSchedule(torch.tensor([0.5], dtype=torch.float64)).rescaled_to_zero_terminal_snr()
