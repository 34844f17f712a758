"""Which timesteps and noise levels diffusers' schedulers visit, in their arithmetic.

One thing is not followed, since it is a mistake upstream: `np.arange(T, 0, -T/N)` of trailing spacing has for some N (62 of the
first 1000 where T is 1000, 61 the smallest) N + 1 entries, the last of which rounds to timestep -1. Where DPM-Solver++'s
lambda_min_clipped makes it begin below T, its last entry can do so for other N too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fastcond.diffusion.samplers.spacing import Spacing
from fastcond.diffusion.schedule import NoiseSchedule

SigmaSpacing = Literal["timesteps", "karras", "exponential", "lu"]
FinalSigma = Literal["zero", "sigma_min"]
SMALLEST_ALPHA = 2.0**-24  # float16's smallest number


def spaced(T: int, N: int, spacing: Spacing, steps_offset: int = 0) -> np.ndarray:
    """int64 [N]: DDPMScheduler's and DDIMScheduler's set_timesteps. One step of linspace is timestep 0, as there."""
    _require_steps(N, T)
    if spacing == "linspace":
        t: np.ndarray = np.linspace(0, T - 1, N).round()[::-1]
    elif spacing == "leading":
        t = (np.arange(N) * (T // N))[::-1] + steps_offset
    else:
        t = _trailing(T, T, N, spacing)
    return _falling(t.astype(np.int64), T, N, spacing)


def spaced_fractional(T: int, N: int, spacing: Spacing, steps_offset: int = 0) -> np.ndarray:
    """float32 [N]: Heun's and Euler's, which in linspace lie between timesteps."""
    _require_steps(N, T)
    if spacing == "linspace":
        return np.linspace(0, T - 1, N, dtype=np.float32)[::-1].copy()
    return spaced(T, N, spacing, steps_offset).astype(np.float32)


def spaced_within(T: int, N: int, spacing: Spacing, steps_offset: int = 0, last: int | None = None) -> np.ndarray:
    """int64: DPMSolverMultistepScheduler's, of the first `last` timesteps (default all): N of N + 1 points, but for trailing."""
    _require_steps(N, T)
    last = T if last is None else last
    if spacing == "linspace":
        t: np.ndarray = np.linspace(0, last - 1, N + 1).round()[::-1][:-1]
    elif spacing == "leading":
        t = (np.arange(N + 1) * (last // (N + 1)))[::-1][:-1] + steps_offset
    else:
        t = _trailing(last, T, N, spacing)
    return _falling(t.astype(np.int64), T, N, spacing)


def _require_steps(N: int, T: int) -> None:
    if not 1 <= N <= T:
        raise ValueError(f"steps is {N}; this schedule has {T} timesteps, so give 1 to {T}")


def _trailing(last: int, T: int, N: int, spacing: str) -> np.ndarray:
    if spacing != "trailing":
        raise ValueError(f"spacing is {spacing!r}; choose trailing, leading or linspace")
    t = np.arange(last, 0, -T / N).round() - 1
    return t[t >= 0]


def _falling(t: np.ndarray, T: int, N: int, spacing: str) -> np.ndarray:
    if t[0] >= T:
        raise ValueError(
            f"{N} steps of spacing {spacing} visit timestep {t[0]} and the schedule ends at {T - 1}; lower steps_offset"
        )
    if (t[1:] >= t[:-1]).any():
        raise ValueError(f"{N} steps of spacing {spacing} visit a timestep twice; give fewer steps")
    return t.copy()


def training_alphas(schedule: NoiseSchedule) -> Tensor:
    """float32 [T]: alphas_cumprod, a last one of 0 as 2^-24, as diffusers has it where its sigma would be infinite.

    Of a schedule with linear betas the timestep before the last then has less signal than the last.
    """
    a = schedule.alphas_cumprod.float()
    return torch.where(a > 0, a, SMALLEST_ALPHA)


def training_sigmas(schedule: NoiseSchedule) -> np.ndarray:
    """float32 [T]: sqrt((1 - a)/a) of every timestep."""
    a = training_alphas(schedule)
    return (((1 - a) / a) ** 0.5).numpy()


def sigmas_spaced(spacing: SigmaSpacing, largest: float, smallest: float, N: int) -> np.ndarray:
    """float64 [N] from largest to smallest.

    karras: the 7th root falls evenly (Karras et al. 2022, eq. 5); exponential: the logarithm does, and "lu", where it is half the
    log snr (Lu et al. 2022, section 4), is the same levels but for diffusers' rounding, on which whole timesteps can hang.
    """
    ramp, root = np.linspace(0, 1, N), 1 / 7.0
    if spacing == "karras":
        return (largest**root + ramp * (smallest**root - largest**root)) ** 7.0
    if spacing == "exponential":
        return np.exp(np.linspace(math.log(largest), math.log(smallest), N))
    high, low = (float(np.log(np.float32(sigma))) for sigma in (largest, smallest))
    return np.exp(high + ramp * (low - high))


def timesteps_of(sigmas: np.ndarray, training: np.ndarray) -> np.ndarray:
    """float64 [N]: where log sigma stands between those of the timesteps, linearly interpolated; clipped at both ends."""
    log_sigma, log_training = np.log(np.maximum(sigmas, 1e-10)), np.log(training)
    # The last timestep of no more noise. Not searchsorted: see `training_alphas`.
    below = [np.flatnonzero(one >= log_training)[-1:] for one in log_sigma]
    low = np.array([int(found[0]) if len(found) else 0 for found in below]).clip(0, max(len(training) - 2, 0))
    high = np.minimum(low + 1, len(training) - 1)
    with np.errstate(divide="ignore", invalid="ignore"):  # of a schedule of one timestep
        w = np.nan_to_num((log_training[low] - log_sigma) / (log_training[low] - log_training[high])).clip(0, 1)
    return (1 - w) * low + w * high


def with_final(sigmas: np.ndarray, training: np.ndarray, final: FinalSigma) -> np.ndarray:
    """float64 [N + 1], rounded to float32 as diffusers keeps them: the levels and what the run ends in."""
    if final not in ("zero", "sigma_min"):
        raise ValueError(f"final_sigmas_type is {final!r}; choose zero or sigma_min")
    return np.append(sigmas, 0.0 if final == "zero" else training[0]).astype(np.float32).astype(np.float64)


def scales(sigmas: np.ndarray, of: Callable[[Tensor], Tensor] = lambda s: 1 / (s.square() + 1).sqrt()) -> tuple[Tensor, Tensor]:
    """(alpha, sigma), float64 [N + 1] each, of states kept in the scale that the network is fed: alpha = of(s), sigma = alpha s.

    Default: variance-preserving, alpha = sqrt(a).
    """
    s = torch.from_numpy(sigmas)
    alpha = of(s)
    return alpha, alpha * s
