"""The bound's term against its definition, written out anew in Python's own floats, and what learns from it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcond.config import PREDICTIONS
from fastcond.diffusion import NoiseSchedule, VariationalBound, diffusion_loss
from fastcond.diffusion.prediction import add_noise, training_target
from fastcond.diffusion.variational_bound import HYBRID_WEIGHT, gaussian_divergence, level_log_likelihood

T = 40
SCHEDULES = {"linear": NoiseSchedule.linear(T), "cosine": NoiseSchedule.cosine(T)}
TIMESTEPS = torch.tensor([0, 1, 2, 17, T - 1])


def batch(schedule: NoiseSchedule) -> dict[str, Tensor]:
    """x_0 of 256 levels, its extremes among them, x_t, a guess of x_0 and v."""
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.randint(0, 256, (len(TIMESTEPS), 2, 3, 3), generator=generator) / 127.5 - 1
    x_0[:, 0, 0, 0], x_0[:, 0, 0, 1] = -1.0, 1.0
    eps, guess, v = (torch.randn(x_0.shape, generator=generator) for _ in range(3))
    a = schedule.alphas_cumprod[TIMESTEPS].float()[:, None, None, None]
    return {"x_0": x_0, "eps": eps, "guess": x_0 + 0.05 * guess, "v": v, "x_t": add_noise(x_0, eps, a)}


def output_for(prediction: Any, guess: Tensor, x_t: Tensor, a: Tensor) -> Tensor:
    """What a network says that means `guess`."""
    return training_target(prediction, guess, (x_t - a.sqrt() * guess) / (1 - a).sqrt(), a)


def normal_cdf(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))


def term_in_bits(a: list[float], t: int, x_0: float, x_t: float, guess: float, v: float) -> float:
    """L_t of one pixel by Nichol & Dhariwal 2021 and Ho et al. 2020, betas and alphas and all."""
    before = [1.0, *a[:-1]]
    beta = [1 - a[i] / before[i] for i in range(T)]
    tilde = [(1 - before[i]) / (1 - a[i]) * beta[i] for i in range(T)]
    tilde[0] = tilde[1]
    f = (v + 1) / 2
    sigma = math.sqrt(math.exp(f * math.log(beta[t]) + (1 - f) * math.log(tilde[t])))

    def mean(of: float) -> float:
        alpha = 1 - beta[t]
        return (math.sqrt(before[t]) * beta[t] * of + math.sqrt(alpha) * (1 - before[t]) * x_t) / (1 - a[t])

    if t > 0:
        first = math.sqrt(tilde[t])
        nats = math.log(sigma / first) + (first**2 + (mean(x_0) - mean(guess)) ** 2) / (2 * sigma**2) - 0.5
    else:
        upper = 1.0 if x_0 > 0.999 else normal_cdf((x_0 + 1 / 255 - mean(guess)) / sigma)
        lower = 0.0 if x_0 < -0.999 else normal_cdf((x_0 - 1 / 255 - mean(guess)) / sigma)
        nats = -math.log(upper - lower)
    return nats / math.log(2)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_term_is_its_definition(name: str, prediction: Any) -> None:
    schedule, data = SCHEDULES[name], {key: value.double() for key, value in batch(SCHEDULES[name]).items()}
    a = schedule.alphas_cumprod[TIMESTEPS][:, None, None, None]
    output = output_for(prediction, data["guess"], data["x_t"], a)
    actual = VariationalBound.of(schedule, prediction)(data["x_0"], data["x_t"], TIMESTEPS, output, data["v"])
    levels = schedule.alphas_cumprod.tolist()
    expected = []
    for i, t in enumerate(TIMESTEPS.tolist()):
        pixels = zip(*(data[key][i].flatten().tolist() for key in ("x_0", "x_t", "guess", "v")), strict=True)
        terms = [term_in_bits(levels, t, *pixel) for pixel in pixels]
        expected.append(sum(terms) / len(terms))
    # The definition subtracts numbers near 1 in the likelihood, and means near each other in the divergence.
    assert actual.dtype == torch.float64 and actual.tolist() == pytest.approx(expected, rel=1e-7)


def test_only_the_variance_learns_from_it() -> None:
    schedule = SCHEDULES["cosine"]
    data, bound = batch(schedule), VariationalBound.of(schedule, "eps")
    output, v = (data[key].clone().requires_grad_() for key in ("eps", "v"))
    bound(data["x_0"], data["x_t"], TIMESTEPS, output, v).sum().backward()
    assert output.grad is None
    assert v.grad is not None and bool((v.grad != 0).all())


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_loss_is_hybrid(prediction: Any) -> None:
    """The mean's gradient is L_simple's; v's is lambda T L_t's."""
    schedule = SCHEDULES["linear"]
    data, bound = batch(schedule), VariationalBound.of(schedule, prediction)
    a, weights = schedule.alphas_cumprod.float(), torch.linspace(1, 2, T)
    output, v = (data[key].clone().requires_grad_() for key in ("guess", "v"))
    given = {"label": torch.zeros(len(TIMESTEPS)), "timestep": TIMESTEPS, "alphas_cumprod": a, "weights": weights}
    images = {"x_0": data["x_0"], "eps": data["eps"]}
    both = diffusion_loss(lambda *_: torch.cat([output, v], dim=1), **images, **given, prediction=prediction, bound=bound)
    simple = diffusion_loss(lambda *_: output, **images, **given, prediction=prediction)
    terms = bound(data["x_0"], data["x_t"], TIMESTEPS, output, v)
    assert both.dtype == torch.float32
    assert both.item() == pytest.approx(simple.item() + HYBRID_WEIGHT * T * terms.mean().item(), rel=1e-5)
    gradient, of_v = torch.autograd.grad(both, [output, v])
    (of_simple,) = torch.autograd.grad(simple, [output])
    (of_bound,) = torch.autograd.grad(HYBRID_WEIGHT * T * terms.mean(), [v])
    torch.testing.assert_close(gradient, of_simple)
    torch.testing.assert_close(of_v, of_bound)


def test_the_perfect_predictor_pays_for_the_last_level_alone() -> None:
    """x_0 known and v = -1, the posterior's own variance: no divergence, and log 2 of the levels under a narrow normal."""
    schedule = SCHEDULES["linear"]
    data = batch(schedule)
    a = schedule.alphas_cumprod[TIMESTEPS][:, None, None, None]
    output = output_for("x_0", data["x_0"], data["x_t"], a)
    bound = VariationalBound.of(schedule, "x_0")
    terms = bound(data["x_0"], data["x_t"], TIMESTEPS, output, torch.full_like(data["x_0"], -1.0))
    assert terms[1:].abs().max() < 1e-12 and terms[0] > 0
    std = math.exp(float(bound.log_low[0]) / 2)
    inner = -math.log2(2 * normal_cdf(1 / 255 / std) - 1)
    outer = -math.log2(normal_cdf(1 / 255 / std))
    outermost = int((data["x_0"][0].abs() > 0.999).sum())
    assert float(terms[0]) == pytest.approx((inner * (18 - outermost) + outer * outermost) / 18)
    worse = bound(data["x_0"], data["x_t"], TIMESTEPS, output, torch.full_like(data["x_0"], 0.5))
    # Of many steps the last have beta~ and beta next to equal.
    assert bool((worse > terms).all()) and bool((worse[1:3] > 0.01).all())


def test_the_best_variance_is_found() -> None:
    """A guess that is off by a known distance: the bound is least where sigma^2 is the mean square that is to be expected."""
    schedule, t = SCHEDULES["linear"], 5
    bound = VariationalBound.of(schedule, "x_0")
    off = math.sqrt(0.5 * math.exp(float(bound.log_low[t])))
    v = torch.linspace(-1, 3, 4001, dtype=torch.float64)
    low, high = bound.log_low[t], bound.log_high[t]
    log_variance = torch.lerp(low, high, (v + 1) / 2)
    divergence = gaussian_divergence(torch.tensor(off), low, log_variance)
    assert float(log_variance[divergence.argmin()]) == pytest.approx(float(low) + math.log(1.5), abs=1e-3)


def test_levels_have_probability_one_together() -> None:
    x = (torch.arange(256, dtype=torch.float64) * 2 - 255) / 255
    for mean in (-3.0, -1.0, 0.1234, 0.99, 40.0):
        for log_std in (-6.0, -1.0, 2.0):
            likelihood = level_log_likelihood(x, torch.tensor(mean), torch.tensor(log_std, dtype=torch.float64))
            assert bool(likelihood.isfinite().all())
            assert float(likelihood.exp().sum()) == pytest.approx(1.0, rel=1e-9)


def test_the_impossible_has_a_gradient() -> None:
    """A network at its beginning may be far off: no inf and no nan in what it learns."""
    schedule = SCHEDULES["cosine"]
    data, bound = batch(schedule), VariationalBound.of(schedule, "x_0")
    for distance, least in ((30.0, -8.0), (300.0, 8.0)):
        v = torch.full_like(data["x_0"], least).requires_grad_()
        terms = bound(data["x_0"], data["x_t"], TIMESTEPS, data["x_0"] + distance, v)
        terms.sum().backward()
        assert bool(terms.isfinite().all()) and v.grad is not None and bool(v.grad.isfinite().all())
