"""Which timesteps a run of N steps visits."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fastcond.diffusion.schedule import NoiseSchedule

Spacing = Literal["trailing", "leading", "linspace"]


def spaced_timesteps(num_timesteps: int, steps: int, spacing: Spacing = "trailing") -> Tensor:
    """int64 [steps], strictly decreasing timesteps in [0, T).

    "trailing" starts at T-1, where training's noise is strongest, and stops short of 0; "leading" ends at 0 and starts short
    of T-1; "linspace" has both ends. Rounding is half to even, as numpy's.
    Raises: ValueError for steps outside 1 .. T.
    Source: Lin et al. 2024, table 2.
    """
    T, N = num_timesteps, steps
    if not 1 <= N <= T:
        raise ValueError(f"steps is {N}; this model was trained with {T} timesteps, so give 1 to {T}")
    if spacing == "trailing":
        t = np.round(T - np.arange(N) * (T / N)) - 1
    elif spacing == "leading":
        t = (np.arange(N) * (T // N))[::-1]
    elif spacing == "linspace":
        t = np.round(np.linspace(0, T - 1, N))[::-1] if N > 1 else np.array([T - 1])
    else:
        raise ValueError(f"spacing is {spacing!r}; choose trailing, leading or linspace")
    return torch.from_numpy(np.ascontiguousarray(t).astype(np.int64))


def alphas_along(schedule: NoiseSchedule, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """(a_t, a of the next row), float64 [N] each; after the last row comes the image, a = 1."""
    a = schedule.alphas_cumprod[timesteps]
    return a, torch.cat([a[1:], a.new_ones(1)])


def scales_along(schedule: NoiseSchedule, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) = (sqrt(a), sqrt(1 - a)), float64 [N + 1] each: of every row, and of the image, (1, 0)."""
    a = torch.cat([schedule.alphas_cumprod[timesteps], torch.ones(1, dtype=torch.float64)])
    return a.sqrt(), (1 - a).sqrt()
