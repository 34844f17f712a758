"""diffusers' DPMSolverMultistepScheduler, HeunDiscreteScheduler and EulerDiscreteScheduler as step tables.

The last two keep y = x/alpha and divide it by sqrt(s^2 + 1) before the network sees it; a table keeps what the network sees.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fastcond.config import Prediction
from fastcond.diffusion.prediction import x_0_coefficients
from fastcond.diffusion.samplers.solvers import SecondOrder, first_order, multistep, predictor_corrector
from fastcond.diffusion.samplers.spacing import Spacing
from fastcond.diffusion.schedule import NoiseSchedule
from fastcond.diffusion.schedulers import grids
from fastcond.diffusion.schedulers.bounds import Threshold, bounded
from fastcond.diffusion.schedulers.grids import FinalSigma, SigmaSpacing
from fastcond.diffusion.step_table import StepTable

# Below it diffusers' lower_order_final makes the last step one of first order.
FEW_STEPS = 15


def dpm_solver_scheduler(
    schedule: NoiseSchedule,
    steps: int,
    *,
    prediction: Prediction = "eps",
    spacing: Spacing = "linspace",
    steps_offset: int = 0,
    order: int = 2,
    solver: SecondOrder = "midpoint",
    stochastic: bool = False,
    lower_order_final: bool = True,
    euler_at_final: bool = False,
    sigmas: SigmaSpacing = "timesteps",
    final: FinalSigma = "zero",
    lambda_min_clipped: float = -math.inf,
    threshold: Threshold | None = None,
    whole_timesteps: bool = True,
) -> StepTable:
    """DPMSolverMultistepScheduler with algorithm_type "dpmsolver++", or `stochastic` "sde-dpmsolver++", of solver_order 1 or 2.

    There is no clamp: for pixels use thresholding with a sample_max_value of 1, which is one.

    Args: schedule, steps, prediction, spacing, steps_offset, threshold as `ddpm_scheduler`. sigmas: which noise levels;
        "timesteps" are those of the spacing. final: sigma after the last row. lambda_min_clipped: timesteps of less half log snr
        are left out. whole_timesteps: round them where sigmas are spaced (else they are cut off, as diffusers does with
        squaredcos_cap_v2).
    Raises: ValueError for what does not fit.
    Source: Lu et al. 2022, "DPM-Solver++".
    """
    T, training = schedule.num_timesteps, grids.training_sigmas(schedule)
    if sigmas == "timesteps":
        timesteps = grids.spaced_within(T, steps, spacing, steps_offset, _last_timestep(schedule, lambda_min_clipped))
        levels = np.interp(timesteps, np.arange(T), training)
    else:
        levels = grids.sigmas_spaced(sigmas, float(training[-1]), float(training[0]), steps)
        between = grids.timesteps_of(levels, training)
        timesteps = (between.round() if whole_timesteps else between).astype(np.int64)
    alpha, sigma = grids.scales(grids.with_final(levels, training, final))
    rows = torch.arange(len(timesteps))
    first = euler_at_final or final == "zero" or (lower_order_final and len(timesteps) < FEW_STEPS)
    second_order = (rows < len(rows) - 1) if first else rows >= 0
    if order not in (1, 2):
        raise ValueError(f"order is {order}; a table keeps one earlier prediction, so 1 or 2")
    columns = multistep(alpha, sigma, second_order=second_order & (order == 2), solver=solver, stochastic=stochastic)
    p_x, p_o = x_0_coefficients(prediction, alpha[:-1].square())
    rows_of = {"p_x": p_x, "p_o": p_o, **columns}
    table = StepTable.from_columns(torch.from_numpy(timesteps), rows_of, draws_in_vain=stochastic)
    return bounded(table, math.inf, threshold)


def heun_scheduler(
    schedule: NoiseSchedule,
    steps: int,
    *,
    prediction: Prediction = "eps",
    clip: float = math.inf,
    spacing: Spacing = "linspace",
    steps_offset: int = 0,
    sigmas: SigmaSpacing = "timesteps",
) -> StepTable:
    """HeunDiscreteScheduler: every step but the last is corrected, however far s falls.

    Args: as `dpm_solver_scheduler`. Returns: a table of 2 steps - 1 rows, with timesteps between whole ones in linspace.
    Raises: ValueError for what does not fit.
    Source: Karras et al. 2022, algorithm 2.
    """
    timesteps, levels, training = _between_timesteps(schedule, steps, spacing, steps_offset, sigmas)
    alpha, sigma = grids.scales(grids.with_final(levels, training, "zero"))
    at, columns = predictor_corrector(alpha, sigma, torch.arange(len(levels)) < len(levels) - 1)
    p_x, p_o = x_0_coefficients(prediction, alpha[:-1].square())
    scale = _initial_scale(alpha, sigma, spacing)
    table = StepTable.from_columns(timesteps[at], {"p_x": p_x[at], "p_o": p_o[at], **columns}, initial_scale=scale)
    return bounded(table, clip)


def euler_scheduler(
    schedule: NoiseSchedule,
    steps: int,
    *,
    prediction: Prediction = "eps",
    spacing: Spacing = "linspace",
    steps_offset: int = 0,
    sigmas: SigmaSpacing = "timesteps",
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    final: FinalSigma = "zero",
    log_linear: bool = False,
    tells_log_sigma: bool = False,
) -> StepTable:
    """EulerDiscreteScheduler without churn, which is no setting of its but of a call of step().

    Args: as `dpm_solver_scheduler`; sigma_min, sigma_max: ends of karras and exponential sigmas, where not the timesteps' own;
        log_linear: interpolation_type, whose log sigmas fall evenly, in one step more than is run, so that it ends in the next
        to last; tells_log_sigma: the network is told log(sigma)/4 (timestep_type "continuous" of a v_prediction). With both,
        that step is run too, since diffusers then has a timestep for every sigma: the table has steps + 1 rows.
    Raises: ValueError for what does not fit.
    Source: Karras et al. 2022, algorithm 1 without its correction.
    """
    timesteps, levels, training = _between_timesteps(
        schedule, steps, spacing, steps_offset, sigmas, sigma_min, sigma_max, log_linear=log_linear
    )
    grid = grids.with_final(levels, training, final)
    grid = grid if tells_log_sigma else grid[: len(timesteps) + 1]
    alpha, sigma = grids.scales(grid)
    scale = _initial_scale(alpha, sigma, spacing)
    if tells_log_sigma:
        timesteps = 0.25 * torch.from_numpy(grid[:-1]).float().log()
    # What is handed over at the end is y = x/alpha.
    sigma[-1], alpha[-1] = grid[-1], 1.0
    k_x, k_0 = first_order(alpha, sigma)
    p_x, p_o = x_0_coefficients(prediction, alpha[:-1].square())
    columns = {"p_x": p_x, "p_o": p_o, "k_x": k_x, "k_0": k_0}
    return StepTable.from_columns(timesteps, columns, initial_scale=scale)


def _between_timesteps(
    schedule: NoiseSchedule,
    steps: int,
    spacing: Spacing,
    steps_offset: int,
    sigmas: SigmaSpacing,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    *,
    log_linear: bool = False,
) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """(timesteps float32 [N], sigmas float64 [N], those of training float32 [T]); log_linear has N + 1 sigmas."""
    T, training = schedule.num_timesteps, grids.training_sigmas(schedule)
    timesteps = grids.spaced_fractional(T, steps, spacing, steps_offset)
    levels = np.interp(timesteps, np.arange(T), training)
    if log_linear:
        levels = grids.sigmas_spaced("exponential", float(training[-1]), float(training[0]), steps + 1)
    if sigmas != "timesteps":
        largest = float(levels[0]) if sigma_max is None else sigma_max
        smallest = float(levels[-1]) if sigma_min is None else sigma_min
        levels = grids.sigmas_spaced(sigmas, largest, smallest, steps)
        timesteps = grids.timesteps_of(levels, training).astype(np.float32)
    return torch.from_numpy(timesteps), levels, training


def _initial_scale(alpha: Tensor, sigma: Tensor, spacing: Spacing) -> float:
    """diffusers starts from y = s z, and with leading spacing from sqrt(s^2 + 1) z."""
    return 1.0 if spacing == "leading" else float(sigma[0])


def _last_timestep(schedule: NoiseSchedule, lambda_min_clipped: float) -> int:
    """How many timesteps have a half log snr above the bound."""
    a = grids.training_alphas(schedule)
    half_log_snr = torch.log(a.sqrt()) - torch.log((1 - a).sqrt())
    return schedule.num_timesteps - int(torch.searchsorted(half_log_snr.flip(0), lambda_min_clipped))
