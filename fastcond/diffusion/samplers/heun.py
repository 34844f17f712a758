"""Heun's second-order method for the probability-flow ODE (Karras et al. 2022, algorithm 2), on a discrete schedule.

With s = sigma/alpha, y = x/alpha (alpha = sqrt(a), sigma = sqrt(1 - a)) the ODE is dy/ds = (y - x0)/s. A step from s to s':

    predictor   y' = y + (s' - s) (y - x0)/s
    corrector   y" = y + (s' - s) [ (y - x0)/s + (y' - x0')/s' ] / 2,   x0' the prediction at (y', s')

The corrector starts again from y, which a row of a table no longer has. But y' and x0, the history h, determine y, and put in,
all of y and y' cancels but one y':

    x" = x' + w (x0' - h),   w = alpha' (s - s') / (2 s')

so the corrector is a row with k_x = 1, k_0 = w, k_h = -w.
"""

from __future__ import annotations

import torch

from fastcond.config import Prediction
from fastcond.diffusion.prediction import x_0_coefficients
from fastcond.diffusion.samplers.dpm_solver import first_order
from fastcond.diffusion.samplers.spacing import Spacing, alphas_along, spaced_timesteps
from fastcond.diffusion.schedule import NoiseSchedule
from fastcond.diffusion.step_table import StepTable

# Where x0 moves along the way as s^2 does, the corrector leaves (s/s' - 1)/2 of the predictor's error; as s, about as much.
# Beyond this s/s' it makes the error larger.
_LARGEST_RATIO = 3.0


def heun(
    schedule: NoiseSchedule,
    steps: int,
    *,
    prediction: Prediction = "eps",
    clip: float = 1.0,
    spacing: Spacing = "trailing",
) -> StepTable:
    """Predictor and corrector as rows of their own; x0 is clamped to [-clip, clip] in both.

    A row is one evaluation of the network, and `steps` counts Heun's steps, as in the paper and in diffusers: N steps have up to
    2N - 1 rows. The last step, to the image, has no corrector (s' = 0, as in the paper), and for the same reason neither has a
    step from s to less than s/3, where the corrector would add error: from pure noise (a = 0, s infinite), the cosine
    schedule's first, over which s falls from 20,000 to 30, or runs of a few steps.

    Args: schedule of T timesteps; steps in 1 .. T; clip may be infinite.
    Returns: a table of at most 2 steps - 1 rows that draws no noise, and keeps history where there is a corrector.
    Raises: ValueError for steps, prediction or spacing that do not fit.
    Source: Karras et al. 2022, algorithm 2 (without churn).
    """
    timesteps = spaced_timesteps(schedule.num_timesteps, steps, spacing)
    a, a_next = alphas_along(schedule, timesteps)
    ratio = ((1 - a) / a / ((1 - a_next) / a_next)).sqrt()  # s / s'
    corrected = ratio <= _LARGEST_RATIO
    w = a_next.sqrt() * (ratio - 1) / 2
    # Row numbers: every step has a predictor, behind it its corrector where it has one.
    predictor = torch.arange(steps) + torch.cumsum(corrected, 0) - corrected.long()
    corrector = predictor[corrected] + 1
    rows = steps + len(corrector)

    at = torch.empty(rows, dtype=torch.int64)  # at which of the run's timesteps a row evaluates the network
    at[predictor] = torch.arange(steps)
    at[corrector] = torch.arange(steps)[corrected] + 1
    k_x, k_0, k_h = torch.zeros(3, rows, dtype=torch.float64)
    k_x[predictor], k_0[predictor] = first_order(a, a_next)
    k_x[corrector], k_0[corrector], k_h[corrector] = 1.0, w[corrected], -w[corrected]
    p_x, p_o = x_0_coefficients(prediction, a)
    return StepTable.from_columns(
        timesteps[at],
        {"p_x": p_x[at], "p_o": p_o[at], "c": k_x * 0 + clip, "k_x": k_x, "k_0": k_0, "k_h": k_h},
    )
