"""Data N(MU, S^2), whose best denoiser is known and linear: E[x_0 | x_t] = (sqrt(a) s^2 x_t + (1 - a) mu) / (a s^2 + 1 - a).

So the state of a run, x and the history h, is a linear map of the initial noise, and its mean and variance follow from
the table in float64 without sampling.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastcond.diffusion import NoiseSchedule, StepTable
from fastcond.diffusion.step_table import COLUMNS

MU, S = 0.4, 0.5


def exact_output(prediction: str, a: Tensor, spread: float = S) -> tuple[Tensor, Tensor]:
    """(slope, offset) with output = slope x_t + offset, the best prediction for N(MU, spread^2) at alphas_cumprod a."""
    power = a * spread**2 + 1 - a
    x_0 = (a.sqrt() * spread**2 / power, (1 - a) * MU / power)
    if prediction == "x_0":
        return x_0
    eps = ((1 - a.sqrt() * x_0[0]) / (1 - a).sqrt(), -a.sqrt() * x_0[1] / (1 - a).sqrt())
    if prediction == "eps":
        return eps
    return a.sqrt() * eps[0] - (1 - a).sqrt() * x_0[0], a.sqrt() * eps[1] - (1 - a).sqrt() * x_0[1]


def moments(table: StepTable, prediction: str, schedule: NoiseSchedule, spread: float = S) -> list[tuple[float, float]]:
    """(mean, standard deviation) of x after every row of the unclipped table, from x ~ N(0, 1), float64."""
    slope, offset = exact_output(prediction, schedule.alphas_cumprod[table.timesteps], spread)
    k = {name: table.column(name).double() for name in COLUMNS}
    to_x_0 = k["p_x"] + k["p_o"] * slope, k["p_o"] * offset
    mean, covariance = torch.zeros(2, dtype=torch.float64), torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64))
    visited = []
    for row in range(table.num_rows):
        gain = torch.stack(
            (
                torch.stack((k["k_x"][row] + k["k_0"][row] * to_x_0[0][row] + k["k_o"][row] * slope[row], k["k_h"][row])),
                torch.stack((to_x_0[0][row], torch.zeros((), dtype=torch.float64))),
            )
        )
        push = torch.stack((k["k_0"][row] * to_x_0[1][row] + k["k_o"][row] * offset[row], to_x_0[1][row]))
        mean, covariance = gain @ mean + push, gain @ covariance @ gain.T
        covariance[0, 0] += k["k_n"][row] ** 2
        visited.append((float(mean[0]), float(covariance[0, 0].clamp(min=0).sqrt())))
    return visited


def final_mean_and_std(table: StepTable, prediction: str, schedule: NoiseSchedule) -> tuple[float, float]:
    """Of x after the last row."""
    return moments(table, prediction, schedule)[-1]
