"""diffusers' DDPMScheduler and DDIMScheduler as step tables."""

from __future__ import annotations

from typing import Literal

import torch

from fastcond.config import Prediction
from fastcond.diffusion.samplers.ddim import ddim_columns, ddim_sizes
from fastcond.diffusion.samplers.ddpm import SMALLEST_VARIANCE, Variance, posterior_table
from fastcond.diffusion.samplers.spacing import Spacing
from fastcond.diffusion.schedule import NoiseSchedule
from fastcond.diffusion.schedulers.bounds import Threshold, bounded
from fastcond.diffusion.schedulers.grids import spaced
from fastcond.diffusion.step_table import StepTable


def ddpm_scheduler(
    schedule: NoiseSchedule,
    steps: int,
    *,
    prediction: Prediction = "eps",
    clip: float = 1.0,
    spacing: Spacing = "leading",
    steps_offset: int = 0,
    variance: Variance = "fixed_small",
    threshold: Threshold | None = None,
) -> StepTable:
    """`fastcond.diffusion.ddpm` as DDPMScheduler computes it.

    Noise is added at every timestep but 0, so also by the last row where that is not timestep 0 (trailing spacing, steps_offset):
    of size 1e-10 with fixed_small, of size sqrt(1 - a) with fixed_large. beta = 1 - a/a' is a float32 difference, with an
    absolute error of 3e-8, where our own is float64's. fixed_large_log is NaN there, and here what was meant, sqrt(beta).

    Args: as `ddpm`; steps_offset: added to the timesteps of leading spacing; threshold: (percentile, sample_max_value) of dynamic
        thresholding, which takes the place of clip.
    Raises: ValueError for what does not fit.
    """
    timesteps = torch.from_numpy(spaced(schedule.num_timesteps, steps, spacing, steps_offset))
    a = schedule.alphas_cumprod[timesteps]
    a_next = torch.cat([a[1:], a.new_ones(1)])
    beta = (1 - a.float() / a_next.float()).double()
    noisy = timesteps > 0
    table = posterior_table(
        timesteps, a, a_next, beta, prediction, variance=variance, noisy=noisy, smallest_variance=SMALLEST_VARIANCE
    )
    return bounded(table, clip, threshold)


def ddim_scheduler(
    schedule: NoiseSchedule,
    steps: int,
    *,
    prediction: Prediction = "eps",
    clip: float = 1.0,
    spacing: Spacing = "leading",
    steps_offset: int = 0,
    eta: float = 0.0,
    rederive_eps: bool = False,
    ends_in_image: bool = True,
    previous: Literal["diffusers", "schedule"] = "diffusers",
    threshold: Threshold | None = None,
) -> StepTable:
    """`fastcond.diffusion.ddim` as DDIMScheduler computes it.

    A row there goes to the noise level of timestep t - T//N, whatever the spacing. With linspace, and with trailing where N does
    not divide T, that is not the timestep which comes next, so the network is told another noise level than x has.

    Args: as `ddim` and `ddpm_scheduler`. rederive_eps: step()'s use_clipped_model_output. ends_in_image: set_alpha_to_one;
        without it a run ends at timestep 0's noise level. previous: "diffusers" is t - T//N, "schedule" the next timestep.
    Raises: ValueError for what does not fit.
    """
    if previous not in ("diffusers", "schedule"):
        raise ValueError(f"previous is {previous!r}; choose diffusers or schedule")
    T = schedule.num_timesteps
    timesteps = torch.from_numpy(spaced(T, steps, spacing, steps_offset))
    before = timesteps - T // steps
    if previous == "schedule":
        before = torch.cat([timesteps[1:], torch.tensor([-1])])
    a, final = schedule.alphas_cumprod[timesteps], 1.0 if ends_in_image else float(schedule.alphas_cumprod[0])
    a_next = torch.where(before >= 0, schedule.alphas_cumprod[before.clamp(min=0)], final)
    sigma, direction = ddim_sizes(a.float(), a_next.float(), eta)
    columns = ddim_columns(a, a_next, prediction, sigma.double(), direction.double(), rederive_eps=rederive_eps)
    return bounded(StepTable.from_columns(timesteps, columns, draws_in_vain=eta > 0), clip, threshold)
