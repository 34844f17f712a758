"""Samplers as tables: data that is Gaussian is sampled as such, and the samplers agree where theory says so."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcond.config import PREDICTIONS, DiffusionConfig
from fastcond.diffusion import SAMPLERS, NoiseSchedule, StepTable, ddim, ddpm, dpmpp2m, heun
from tests.support.gaussian_data import MU, S, exact_output, final_mean_and_std
from tests.support.samplers import run_table
from tests.tolerances import STANDARD_ERRORS

SCHEDULE = NoiseSchedule.linear(1000)
UNCLIPPED = float("inf")
SAMPLERS_BY_NAME = {
    "ddpm": ddpm,
    "ddpm fixed_large": lambda *args, **options: ddpm(*args, variance="fixed_large", **options),
    "ddim": ddim,
    "ddim eta 1": lambda *args, **options: ddim(*args, eta=1.0, **options),
    "dpmpp2m": dpmpp2m,
    "heun": heun,
}


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sampler", SAMPLERS_BY_NAME)
def test_a_thousand_steps_of_the_exact_denoiser_sample_the_data(sampler: str, prediction: Any, spacing: Any) -> None:
    """What a finite number of steps leaves: under 1% of the standard deviation, and it halves with twice the steps."""
    table = SAMPLERS_BY_NAME[sampler](SCHEDULE, 1000, prediction=prediction, clip=UNCLIPPED, spacing=spacing)
    mean, std = final_mean_and_std(table, prediction, SCHEDULE)
    assert mean == pytest.approx(MU, abs=0.01 * S) and std == pytest.approx(S, rel=0.01)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sampler", SAMPLERS_BY_NAME)
def test_samples_have_the_moments_of_the_recursion(sampler: str, prediction: Any) -> None:
    """The table executed by diffusion_step on philox noise: mean and standard deviation within 4.5 standard errors."""
    table = SAMPLERS_BY_NAME[sampler](SCHEDULE, 20, prediction=prediction, clip=UNCLIPPED)
    mean, std = final_mean_and_std(table, prediction, SCHEDULE)

    def network(x: Tensor, timestep: Tensor) -> Tensor:
        slope, offset = exact_output(prediction, SCHEDULE.alphas_cumprod[timestep])
        return float(slope) * x + float(offset)

    samples = run_table(table, network, (8, 1, 48, 48))[-1].double()
    n = samples.numel()
    assert abs(samples.mean().item() - mean) < STANDARD_ERRORS * std / math.sqrt(n)
    assert abs(samples.std().item() - std) < STANDARD_ERRORS * std / math.sqrt(2 * n)


@pytest.mark.parametrize("prediction", ["v", "x_0"])
@pytest.mark.parametrize("sampler", SAMPLERS_BY_NAME)
def test_zero_terminal_snr_is_sampled_from_pure_noise(sampler: str, prediction: Any) -> None:
    schedule = NoiseSchedule.from_config(DiffusionConfig(zero_terminal_snr=True, prediction=prediction))
    table = SAMPLERS_BY_NAME[sampler](schedule, 1000, prediction=prediction, clip=UNCLIPPED)
    mean, std = final_mean_and_std(table, prediction, schedule)
    assert mean == pytest.approx(MU, abs=0.01 * S) and std == pytest.approx(S, rel=0.01)
    with pytest.raises(ValueError, match="use prediction v or x_0"):
        SAMPLERS_BY_NAME[sampler](schedule, 10, prediction="eps")


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_ancestral_ddim_is_ddpm(prediction: Any, spacing: Any) -> None:
    """Song et al. 2021, section 4.1: eta = 1 is the DDPM posterior. Compared as maps of (x, output, z), without clamping."""

    def as_map(table: StepTable) -> Tensor:
        k = {name: table.column(name).double() for name in ("p_x", "p_o", "k_x", "k_0", "k_o", "k_n")}
        return torch.stack((k["k_x"] + k["k_0"] * k["p_x"], k["k_o"] + k["k_0"] * k["p_o"], k["k_n"]))

    options: dict[str, Any] = {"prediction": prediction, "spacing": spacing, "clip": UNCLIPPED}
    ours, theirs = as_map(ddim(SCHEDULE, 50, eta=1.0, **options)), as_map(ddpm(SCHEDULE, 50, **options))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sampler", SAMPLERS_BY_NAME)
def test_a_run_ends_in_its_own_x_0_prediction(sampler: str) -> None:
    table = SAMPLERS_BY_NAME[sampler](SCHEDULE, 7)
    last = {name: float(table.column(name)[-1]) for name in ("k_x", "k_0", "k_o", "k_h", "k_n")}
    assert last == pytest.approx({"k_x": 0, "k_0": 1, "k_o": 0, "k_h": 0, "k_n": 0})
    assert table.num_rows == (11 if sampler == "heun" else 7)
    assert table.column("c").tolist() == [1.0] * table.num_rows
    assert table.keeps_history == (sampler in ("dpmpp2m", "heun"))
    assert table.draws_noise == (sampler not in ("ddim", "dpmpp2m", "heun"))


def test_coefficients_are_built_in_float64() -> None:
    """1 - a at timestep 0 is 1e-4; in float32 it would have three digits."""
    table = ddpm(SCHEDULE, 1000, prediction="eps")
    a = SCHEDULE.alphas_cumprod.flip(0)
    expected = (-((1 - a) / a).sqrt()).float()
    assert torch.equal(table.column("p_o"), expected)


def test_samplers_by_name_are_the_functions() -> None:
    assert dict(SAMPLERS) == {"ddpm": ddpm, "ddim": ddim, "dpmpp2m": dpmpp2m, "heun": heun}


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_what_does_not_fit_is_refused(sampler: Any) -> None:
    with pytest.raises(ValueError, match="steps is 1001; this model was trained with 1000"):
        sampler(SCHEDULE, 1001)
    with pytest.raises(ValueError, match="prediction is 'score'"):
        sampler(SCHEDULE, 10, prediction="score")
    with pytest.raises(ValueError, match="spacing is 'even'"):
        sampler(SCHEDULE, 10, spacing="even")
    with pytest.raises(ValueError, match="not a number"):
        sampler(SCHEDULE, 10, clip=float("nan"))


def test_options_of_one_sampler_are_checked() -> None:
    wrong: Any = "guessed"
    with pytest.raises(ValueError, match="variance is 'guessed'; choose one of fixed_small, fixed_small_log, fixed_large"):
        ddpm(SCHEDULE, 10, variance=wrong)
    for eta in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=f"eta is {eta}; it must lie in"):
            ddim(SCHEDULE, 10, eta=eta)
