"""DPM-Solver++ 2M (Lu et al. 2022): the probability-flow ODE in two orders for one evaluation a step."""

from __future__ import annotations

import torch
from torch import Tensor

from fastcond.config import Prediction
from fastcond.diffusion.prediction import x_0_coefficients
from fastcond.diffusion.samplers.spacing import Spacing, alphas_along, spaced_timesteps
from fastcond.diffusion.schedule import NoiseSchedule
from fastcond.diffusion.step_table import StepTable


def dpmpp2m(
    schedule: NoiseSchedule,
    steps: int,
    *,
    prediction: Prediction = "eps",
    clip: float = 1.0,
    spacing: Spacing = "trailing",
) -> StepTable:
    """x' = sigma'/sigma x + alpha' (1 - e^-h) D,   D = x0 + (h / 2 h_before) (x0 - x0_before), x0 clamped to [-clip, clip].

    alpha = sqrt(a), sigma = sqrt(1 - a), h = log(alpha'/sigma') - log(alpha/sigma); x0_before is the prediction of the row
    before. The first row and the last, which ends in x0 itself, are of first order (D = x0), and so is a row whose
    predecessor came from pure noise, a = 0.                              (Lu et al. 2022, "DPM-Solver++", algorithm 2)

    Args: schedule of T timesteps; steps in 1 .. T, one evaluation each; clip may be infinite.
    Returns: a table of `steps` rows that keeps history and draws no noise.
    Raises: ValueError for steps, prediction or spacing that do not fit.
    """
    timesteps = spaced_timesteps(schedule.num_timesteps, steps, spacing)
    a, a_next = alphas_along(schedule, timesteps)
    half_log_snr = (torch.log(a) - torch.log1p(-a)) / 2
    h = half_log_snr.diff()  # of all rows but the last, whose h is infinite
    extrapolation = torch.zeros_like(a)
    extrapolation[1:-1] = h[1:] / (2 * h[:-1])
    p_x, p_o = x_0_coefficients(prediction, a)
    k_x, gain = first_order(a, a_next)
    return StepTable.from_columns(
        timesteps,
        {
            "p_x": p_x,
            "p_o": p_o,
            "c": a * 0 + clip,
            "k_x": k_x,
            "k_0": gain * (1 + extrapolation),
            "k_h": -gain * extrapolation,
        },
    )


def first_order(a: Tensor, a_next: Tensor) -> tuple[Tensor, Tensor]:
    """(k_x, k_0) of x' = k_x x + k_0 x0, exact where x0 does not change along the way. float64 [N] each.

    k_x = sigma'/sigma and k_0 = alpha' - alpha sigma'/sigma, which is alpha' (1 - e^-h) without its infinities.
    Source: Lu et al. 2022, "DPM-Solver++", eq. 9 at first order; with x0 in place, DDIM (Song et al. 2021, eq. 12, eta = 0).
    """
    k_x = ((1 - a_next) / (1 - a)).sqrt()
    return k_x, a_next.sqrt() - a.sqrt() * k_x
