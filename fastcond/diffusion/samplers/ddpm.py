"""Ancestral sampling (Ho et al. 2020, algorithm 2) over any subset of the timesteps (Nichol & Dhariwal 2021, section 4)."""

from __future__ import annotations

from typing import Literal

from fastcond.config import Prediction
from fastcond.diffusion.prediction import x_0_coefficients
from fastcond.diffusion.samplers.spacing import Spacing, alphas_along, spaced_timesteps
from fastcond.diffusion.schedule import NoiseSchedule
from fastcond.diffusion.step_table import StepTable


def ddpm(
    schedule: NoiseSchedule,
    steps: int,
    *,
    prediction: Prediction = "eps",
    clip: float = 1.0,
    spacing: Spacing = "trailing",
    variance: Literal["fixed_small", "fixed_large"] = "fixed_small",
) -> StepTable:
    """x' = mean(x, x0) + sigma z, the posterior q(x' | x, x0) with x0 clamped to [-clip, clip].

    With a, a' the alphas_cumprod of this and the next row, alpha = a/a' and beta = 1 - alpha:
        mean = sqrt(a') beta/(1-a) x0 + sqrt(alpha) (1-a')/(1-a) x                      (Ho et al. 2020, eq. 7)
        sigma^2 = beta (1-a')/(1-a) "fixed_small", beta "fixed_large"                     (ibid., section 3.2)
    The last row adds no noise.

    Args: schedule of T timesteps; steps in 1 .. T; clip may be infinite.
    Raises: ValueError for steps, prediction, spacing or variance that do not fit.
    """
    timesteps = spaced_timesteps(schedule.num_timesteps, steps, spacing)
    a, a_next = alphas_along(schedule, timesteps)
    alpha = a / a_next
    beta = 1 - alpha
    posterior = beta * (1 - a_next) / (1 - a)
    if variance not in ("fixed_small", "fixed_large"):
        raise ValueError(f"variance is {variance!r}; choose fixed_small or fixed_large")
    sigma = (posterior if variance == "fixed_small" else beta).sqrt()
    sigma[-1] = 0
    p_x, p_o = x_0_coefficients(prediction, a)
    return StepTable.from_columns(
        timesteps,
        {
            "p_x": p_x,
            "p_o": p_o,
            "c": a * 0 + clip,
            "k_0": a_next.sqrt() * beta / (1 - a),
            "k_x": alpha.sqrt() * (1 - a_next) / (1 - a),
            "k_n": sigma,
        },
    )
