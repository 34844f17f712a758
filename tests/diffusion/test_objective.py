"""The training loss and its weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastcond.config import PREDICTIONS
from fastcond.diffusion import NoiseSchedule, diffusion_loss, loss_weights
from fastcond.diffusion.prediction import add_noise, eps_coefficients, training_target, x_0_coefficients
from tests.tolerances import FP64

SCHEDULE = NoiseSchedule.linear(100)


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x_0, eps = (torch.randn(4, 2, 3, 5, generator=generator) for _ in range(2))
    return {"x_0": x_0, "label": torch.arange(4), "timestep": torch.tensor([0, 30, 70, 99]), "eps": eps}


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights_are_those_of_the_paper(gamma: float) -> None:
    snr = [float(a / (1 - a)) for a in SCHEDULE.alphas_cumprod]
    assert snr[0] > gamma > snr[-1], "both branches of the minimum occur"
    expected = {
        "eps": [min(s, gamma) / s for s in snr],
        "v": [min(s, gamma) / (s + 1) for s in snr],
        "x_0": [min(s, gamma) for s in snr],
    }
    for prediction in PREDICTIONS:
        weights = loss_weights(SCHEDULE, prediction, "min_snr", gamma)
        torch.testing.assert_close(weights, torch.tensor(expected[prediction], dtype=torch.float64), **FP64)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_mse_weighs_every_timestep_alike(prediction: Any) -> None:
    assert torch.equal(loss_weights(SCHEDULE, prediction, "mse"), torch.ones(100, dtype=torch.float64))


def test_min_snr_is_the_same_loss_whatever_is_predicted() -> None:
    """One guess of x_0, said as eps, v or x_0: the weighted losses agree."""
    data, a = batch(), SCHEDULE.alphas_cumprod
    level = a[data["timestep"]][:, None, None, None]
    x_0, eps = data["x_0"].double(), data["eps"].double()
    x_t, guess = add_noise(x_0, eps, level), 0.9 * x_0 + 0.1
    losses = []
    for prediction in PREDICTIONS:
        implied_eps = (x_t - level.sqrt() * guess) / (1 - level).sqrt()
        output = training_target(prediction, guess, implied_eps, level)
        weights = loss_weights(SCHEDULE, prediction, "min_snr")
        error = (output - training_target(prediction, x_0, eps, level)).square().mean(dim=(1, 2, 3))
        losses.append((weights[data["timestep"]] * error).mean())
    assert losses[1].item() == pytest.approx(losses[0].item()) and losses[2].item() == pytest.approx(losses[0].item())


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_loss_is_the_weighted_mean_square(prediction: Any) -> None:
    data, a = batch(), SCHEDULE.alphas_cumprod.float()
    weights = torch.linspace(1, 3, 100)
    seen = {}

    def denoiser(x_t: Tensor, timestep: Tensor, label: Tensor) -> Tensor:
        seen.update(x_t=x_t, timestep=timestep, label=label)
        return (0.3 * x_t + timestep[:, None, None, None] / 100).bfloat16()

    loss = diffusion_loss(denoiser, **data, alphas_cumprod=a, weights=weights, prediction=prediction)
    level = a[data["timestep"]][:, None, None, None]
    torch.testing.assert_close(seen["x_t"], level.sqrt() * data["x_0"] + (1 - level).sqrt() * data["eps"])
    assert torch.equal(seen["timestep"], data["timestep"]) and torch.equal(seen["label"], data["label"])
    output = denoiser(seen["x_t"], data["timestep"], data["label"]).float()
    target = {
        "eps": data["eps"],
        "x_0": data["x_0"],
        "v": level.sqrt() * data["eps"] - (1 - level).sqrt() * data["x_0"],
    }[prediction]
    errors = [float((output[i] - target[i]).square().mean()) * float(weights[t]) for i, t in enumerate((0, 30, 70, 99))]
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(sum(errors) / 4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_perfect_denoiser_has_no_loss(prediction: Any) -> None:
    data, a = batch(), SCHEDULE.alphas_cumprod.float()
    level = a[data["timestep"]][:, None, None, None]
    target = training_target(prediction, data["x_0"], data["eps"], level)
    loss = diffusion_loss(lambda *_: target, **data, alphas_cumprod=a, weights=torch.ones(100), prediction=prediction)
    assert loss == 0
    for coefficients in (x_0_coefficients, eps_coefficients):
        assert all(column.shape == (100,) for column in coefficients(prediction, SCHEDULE.alphas_cumprod))


def test_unknown_weighting_is_refused() -> None:
    wrong: Any = "p2"
    with pytest.raises(ValueError, match="weighting is 'p2'; choose mse or min_snr"):
        loss_weights(SCHEDULE, "eps", wrong)
