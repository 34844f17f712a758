"""Ancestral sampling (Ho et al. 2020, algorithm 2) over any subset of the timesteps (Nichol & Dhariwal 2021, section 4)."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from fastcond.config import Prediction
from fastcond.diffusion.prediction import x_0_coefficients
from fastcond.diffusion.samplers.spacing import Spacing, alphas_along, spaced_timesteps
from fastcond.diffusion.schedule import NoiseSchedule
from fastcond.diffusion.step_table import LearnedNoise, StepTable

Variance = Literal["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range"]
SMALLEST_VARIANCE = 1e-20  # where the posterior's is 0, so that its logarithm is a number


def ddpm(
    schedule: NoiseSchedule,
    steps: int,
    *,
    prediction: Prediction = "eps",
    clip: float = 1.0,
    spacing: Spacing = "trailing",
    variance: Variance = "fixed_small",
) -> StepTable:
    """x' = mean(x, x0) + sigma z, the posterior q(x' | x, x0) with x0 clamped to [-clip, clip].

    With a, a' the alphas_cumprod of this and the next row, alpha = a/a' and beta = 1 - alpha:
        mean = sqrt(a') beta/(1-a) x0 + sqrt(alpha) (1-a')/(1-a) x                      (Ho et al. 2020, eq. 7)
        sigma^2 = beta (1-a')/(1-a) "fixed_small", beta "fixed_large"                     (ibid., section 3.2)
        log sigma^2 = f log beta + (1-f) log(beta (1-a')/(1-a)), f = (v+1)/2 "learned_range"   (Nichol & Dhariwal 2021, eq. 15)
        sigma^2 = v "learned"; v are the second C channels of a network that has 2C
    "fixed_small_log" and "fixed_large_log" are diffusers' names for the same numbers. The last row adds no noise.

    Args: schedule of T timesteps; steps in 1 .. T; clip may be infinite.
    Raises: ValueError for steps, prediction, spacing or variance that do not fit.
    """
    timesteps = spaced_timesteps(schedule.num_timesteps, steps, spacing)
    a, a_next = alphas_along(schedule, timesteps)
    beta = 1 - a / a_next
    noisy = torch.arange(steps) < steps - 1
    return posterior_table(timesteps, a, a_next, beta, prediction, variance=variance, noisy=noisy, c=a * 0 + clip)


def posterior_table(
    timesteps: Tensor,
    a: Tensor,
    a_next: Tensor,
    beta: Tensor,
    prediction: Prediction,
    *,
    variance: Variance,
    noisy: Tensor,
    smallest_variance: float = 0.0,
    c: Tensor | None = None,
    **others: Any,
) -> StepTable:
    """`ddpm`'s table over rows from a to a_next, float64 [N], of beta = 1 - a/a_next; those that add noise are `noisy`, bool [N].

    smallest_variance: lower bound of the posterior variance. c: as a column; others: as `StepTable.from_columns`'.
    """
    if variance not in get_args(Variance):
        raise ValueError(f"variance is {variance!r}; choose one of {', '.join(get_args(Variance))}")
    posterior = (beta * (1 - a_next) / (1 - a)).clamp(min=smallest_variance)
    p_x, p_o = x_0_coefficients(prediction, a)
    columns = {"p_x": p_x, "p_o": p_o, "k_0": a_next.sqrt() * beta / (1 - a), "k_x": (1 - beta).sqrt() * (1 - a_next) / (1 - a)}
    if c is not None:
        columns["c"] = c
    if variance in ("learned", "learned_range"):
        low, high = posterior.clamp(min=SMALLEST_VARIANCE).log(), beta.clamp(min=SMALLEST_VARIANCE).log()
        # f log beta + (1-f) log posterior, halved: the exponent of the standard deviation.
        exponent = torch.stack((noisy.double(), (high + low) / 4, (high - low) / 4), dim=1)
        others["learned_noise"] = LearnedNoise(exponent.float(), is_variance=variance == "learned")
    else:
        columns["k_n"] = torch.where(noisy, (posterior if variance.startswith("fixed_small") else beta).sqrt(), 0.0)
    return StepTable.from_columns(timesteps, columns, **others)
