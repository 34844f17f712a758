"""eps, v and x_0: one network output, three readings that must agree."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastcond.config import PREDICTIONS
from fastcond.diffusion.prediction import add_noise, eps_coefficients, training_target, x_0_coefficients
from tests.tolerances import FP64

NUMBERS = st.floats(-3, 3)


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@given(x_0=NUMBERS, eps=NUMBERS, a=st.floats(1e-3, 0.999))
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_perfect_output_gives_back_x_0_and_eps(prediction: Any, x_0: float, eps: float, a: float) -> None:
    data, noise, level = vector(x_0), vector(eps), vector(a)
    x_t = add_noise(data, noise, level)
    output = training_target(prediction, data, noise, level)
    p_x, p_o = x_0_coefficients(prediction, level)
    e_x, e_o = eps_coefficients(prediction, level)
    torch.testing.assert_close(p_x * x_t + p_o * output, data, **FP64)
    torch.testing.assert_close(e_x * x_t + e_o * output, noise, **FP64)


@given(x_t=NUMBERS, output=NUMBERS, a=st.floats(1e-3, 0.999))
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_any_output_is_read_as_an_x_0_and_eps_that_mix_to_x_t(prediction: Any, x_t: float, output: float, a: float) -> None:
    level = vector(a)
    p_x, p_o = x_0_coefficients(prediction, level)
    e_x, e_o = eps_coefficients(prediction, level)
    mixed = add_noise(p_x * x_t + p_o * output, e_x * x_t + e_o * output, level)
    torch.testing.assert_close(mixed, vector(x_t), **FP64)


def test_targets_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler()
    t = torch.tensor([0, 250, 999])
    a = scheduler.alphas_cumprod[t][:, None, None, None]
    x_0, eps = torch.randn(3, 1, 2, 2), torch.randn(3, 1, 2, 2)
    torch.testing.assert_close(add_noise(x_0, eps, a), scheduler.add_noise(x_0, eps, t))
    torch.testing.assert_close(training_target("v", x_0, eps, a), scheduler.get_velocity(x_0, eps, t))


@pytest.mark.parametrize("prediction", ["v", "x_0"])
def test_pure_noise_is_no_obstacle_to_v_and_x_0(prediction: Any) -> None:
    for coefficients in (x_0_coefficients(prediction, vector(0.0)), eps_coefficients(prediction, vector(0.0))):
        assert all(bool(column.isfinite().all()) for column in coefficients)


def test_eps_says_nothing_about_x_0_under_pure_noise() -> None:
    with pytest.raises(ValueError, match="use prediction v or x_0"):
        x_0_coefficients("eps", vector(0.5, 0.0))


def test_unknown_predictions_are_refused() -> None:
    wrong: Any = "score"
    for call in (
        lambda: training_target(wrong, vector(1), vector(1), vector(0.5)),
        lambda: x_0_coefficients(wrong, vector(0.5)),
        lambda: eps_coefficients(wrong, vector(0.5)),
    ):
        with pytest.raises(ValueError, match="prediction is 'score'; choose one of eps, v, x_0"):
            call()
