"""Heun's second-order method for the probability-flow ODE (Karras et al. 2022, algorithm 2), on a discrete schedule."""

from __future__ import annotations

from fastcond.config import Prediction
from fastcond.diffusion.prediction import x_0_coefficients
from fastcond.diffusion.samplers.solvers import predictor_corrector
from fastcond.diffusion.samplers.spacing import Spacing, alphas_along, scales_along, spaced_timesteps
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
    """Predictor and corrector as rows of their own (`predictor_corrector`); x0 is clamped to [-clip, clip] in both.

    A row is one evaluation of the network, and `steps` counts Heun's steps, as in the paper and in diffusers: N steps have up to
    2N - 1 rows. The last step, to the image, has no corrector (s' = 0, as in the paper), and for the same reason neither has a
    step from s = sigma/alpha to less than s/3, where the corrector would add error: from pure noise (a = 0, s infinite), the
    cosine schedule's first, over which s falls from 20,000 to 30, or runs of a few steps.

    Args: schedule of T timesteps; steps in 1 .. T; clip may be infinite.
    Returns: a table of at most 2 steps - 1 rows that draws no noise, and keeps history where there is a corrector.
    Raises: ValueError for steps, prediction or spacing that do not fit.
    Source: Karras et al. 2022, algorithm 2 (without churn).
    """
    timesteps = spaced_timesteps(schedule.num_timesteps, steps, spacing)
    a, a_next = alphas_along(schedule, timesteps)
    ratio = ((1 - a) / a / ((1 - a_next) / a_next)).sqrt()  # s / s'
    at, columns = predictor_corrector(*scales_along(schedule, timesteps), corrected=ratio <= _LARGEST_RATIO)
    p_x, p_o = x_0_coefficients(prediction, a)
    clamp = columns["k_x"] * 0 + clip
    return StepTable.from_columns(timesteps[at], {"p_x": p_x[at], "p_o": p_o[at], "c": clamp, **columns})
