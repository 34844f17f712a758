"""DDIM (Song et al. 2021), from deterministic (eta = 0) to ancestral (eta = 1)."""

from __future__ import annotations

from fastcond.config import Prediction
from fastcond.diffusion.prediction import eps_coefficients, x_0_coefficients
from fastcond.diffusion.samplers.spacing import Spacing, alphas_along, spaced_timesteps
from fastcond.diffusion.schedule import NoiseSchedule
from fastcond.diffusion.step_table import StepTable


def ddim(
    schedule: NoiseSchedule,
    steps: int,
    *,
    prediction: Prediction = "eps",
    clip: float = 1.0,
    spacing: Spacing = "trailing",
    eta: float = 0.0,
) -> StepTable:
    """x' = sqrt(a') x0 + sqrt(1 - a' - sigma^2) eps + sigma z, with x0 clamped to [-clip, clip] and eps the network's own.

    sigma = eta sqrt((1-a')/(1-a)) sqrt(1 - a/a')                                         (Song et al. 2021, eq. 12 and 16)

    Args: schedule of T timesteps; steps in 1 .. T; clip may be infinite; eta in [0, 1].
    Raises: ValueError for steps, prediction, spacing or eta that do not fit.
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta is {eta}; it must lie in [0, 1] (0 is deterministic)")
    timesteps = spaced_timesteps(schedule.num_timesteps, steps, spacing)
    a, a_next = alphas_along(schedule, timesteps)
    sigma = eta * ((1 - a_next) / (1 - a) * (1 - a / a_next)).sqrt()
    direction = (1 - a_next - sigma.square()).clamp(min=0).sqrt()
    p_x, p_o = x_0_coefficients(prediction, a)
    e_x, e_o = eps_coefficients(prediction, a)
    return StepTable.from_columns(
        timesteps,
        {
            "p_x": p_x,
            "p_o": p_o,
            "c": a * 0 + clip,
            "k_0": a_next.sqrt(),
            "k_x": direction * e_x,
            "k_o": direction * e_o,
            "k_n": sigma,
        },
    )
