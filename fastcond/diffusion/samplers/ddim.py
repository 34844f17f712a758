"""DDIM (Song et al. 2021), from deterministic (eta = 0) to ancestral (eta = 1)."""

from __future__ import annotations

from torch import Tensor

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
    rederive_eps: bool = False,
) -> StepTable:
    """x' = sqrt(a') x0 + sqrt(1 - a' - sigma^2) eps + sigma z, with x0 clamped to [-clip, clip] and eps the network's own.

    sigma = eta sqrt((1-a')/(1-a)) sqrt(1 - a/a')                                         (Song et al. 2021, eq. 12 and 16)

    Args: schedule of T timesteps; steps in 1 .. T; clip may be infinite; eta in [0, 1]; rederive_eps: eps is what the clamped
        x0 leaves of x (guided-diffusion; diffusers' use_clipped_model_output), not the network's own.
    Raises: ValueError for steps, prediction, spacing or eta that do not fit.
    """
    timesteps = spaced_timesteps(schedule.num_timesteps, steps, spacing)
    a, a_next = alphas_along(schedule, timesteps)
    columns = ddim_columns(a, a_next, prediction, *ddim_sizes(a, a_next, eta), rederive_eps=rederive_eps)
    return StepTable.from_columns(timesteps, {**columns, "c": a * 0 + clip}, draws_in_vain=eta > 0)


def ddim_sizes(a: Tensor, a_next: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """(sigma, sqrt(1 - a' - sigma^2)): the sizes of z and of eps, like a and a_next [N]. Raises: ValueError for a wrong eta.

    In float32 the second is lost where a' is near 0 and eta near 1, and NaN in diffusers, 0 here, where it comes out negative.
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta is {eta}; it must lie in [0, 1] (0 is deterministic)")
    sigma = eta * ((1 - a_next) / (1 - a) * (1 - a / a_next)).sqrt()
    return sigma, (1 - a_next - sigma.square()).clamp(min=0).sqrt()


def ddim_columns(
    a: Tensor, a_next: Tensor, prediction: Prediction, sigma: Tensor, direction: Tensor, *, rederive_eps: bool = False
) -> dict[str, Tensor]:
    """All columns but c, of rows from a to a_next, float64 [N] each, with the sizes of z and of eps."""
    p_x, p_o = x_0_coefficients(prediction, a)
    columns = {"p_x": p_x, "p_o": p_o, "k_n": sigma}
    if rederive_eps:  # eps = (x - sqrt(a) x0) / sqrt(1 - a)
        k_x = direction / (1 - a).sqrt()
        return {**columns, "k_0": a_next.sqrt() - k_x * a.sqrt(), "k_x": k_x}
    e_x, e_o = eps_coefficients(prediction, a)
    return {**columns, "k_0": a_next.sqrt(), "k_x": direction * e_x, "k_o": direction * e_o}
