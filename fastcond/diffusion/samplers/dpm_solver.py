"""DPM-Solver++ 2M (Lu et al. 2022): the probability-flow ODE in two orders for one evaluation a step."""

from __future__ import annotations

from fastcond.config import Prediction
from fastcond.diffusion.prediction import x_0_coefficients
from fastcond.diffusion.samplers.solvers import multistep
from fastcond.diffusion.samplers.spacing import Spacing, alphas_along, scales_along, spaced_timesteps
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
    a, _ = alphas_along(schedule, timesteps)
    p_x, p_o = x_0_coefficients(prediction, a)
    columns = multistep(*scales_along(schedule, timesteps))
    return StepTable.from_columns(timesteps, {"p_x": p_x, "p_o": p_o, "c": a * 0 + clip, **columns})
