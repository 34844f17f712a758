"""Samplers of EDM (Karras et al. 2022): noise levels of their own, and a preconditioned network F.

EDM's state is y = x0 + s z, its network is fed c_in y and told c_noise, and

    x0 = c_skip y + c_out F,   c_in = 1/sqrt(s^2 + d^2), c_skip = d^2 c_in^2, c_out = s d c_in, c_noise = log(s)/4

with d the standard deviation of the data (eq. 7 and table 1). The table's state is what the network is fed, x = c_in y, so no
step scales it: p_x = c_skip/c_in = d^2 c_in, p_o = c_out. (x is the variance-preserving state of x0/d, and F is minus its v.)
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch

from fastcond.config import Prediction
from fastcond.diffusion.samplers.solvers import SecondOrder, multistep, predictor_corrector
from fastcond.diffusion.schedule import NoiseSchedule
from fastcond.diffusion.step_table import StepTable

Method = Literal["euler", "heun", "multistep", "sde"]


def edm(
    schedule: NoiseSchedule | None,
    steps: int,
    *,
    prediction: Prediction = "eps",
    clip: float = math.inf,
    method: Method = "heun",
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    sigma_data: float = 0.5,
    rho: float = 7.0,
    spacing: Literal["karras", "exponential"] = "karras",
    order: int = 2,
    solver: SecondOrder = "midpoint",
    first_order_last: bool = True,
    ends_in_image: bool = True,
    initial_std: float | None = None,
) -> StepTable:
    """`steps` noise levels from sigma_max to sigma_min, then the image.

    s_i = (sigma_max^(1/rho) + i/(N-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho          (Karras et al. 2022, eq. 5)

    Args:
        schedule: not read; EDM's noise levels are a sampler's own. It is here so that all samplers are called alike.
        prediction: "eps" is EDM's network F; "v" one of the other sign, as diffusers' EDM schedulers have under v_prediction.
        clip: bound of x0. method: "heun" (algorithm 2 without churn, 2N - 1 rows), "euler", "multistep" (DPM-Solver++ 2M) or
            "sde" (its SDE form), the last two of `order` and `solver`, and in the last row of first order where first_order_last.
        spacing: "karras", or "exponential": log s falls evenly. ends_in_image: else the run ends at sigma_min, in y.
        initial_std: standard deviation of the first y; default sigma_max, as in the paper.
    Returns: a table whose timesteps are c_noise, float32.
    Raises: ValueError for what does not fit.
    """
    if prediction not in ("eps", "v"):
        raise ValueError(f"prediction is {prediction!r}; EDM's network predicts F: eps, or v for the other sign")
    if steps < 1:
        raise ValueError(f"steps is {steps}; it must be at least 1")
    if not 0 < sigma_min < sigma_max < math.inf or not sigma_data > 0 or not rho > 0:
        found = f"sigma_min {sigma_min:g}, sigma_max {sigma_max:g}, sigma_data {sigma_data:g}, rho {rho:g}"
        raise ValueError(f"{found}; 0 < sigma_min < sigma_max, sigma_data > 0 and rho > 0 are needed")
    if spacing not in ("karras", "exponential") or method not in ("euler", "heun", "multistep", "sde") or order not in (1, 2):
        raise ValueError(f"spacing {spacing!r}, method {method!r}, order {order}: no such EDM sampler")
    ramp = np.linspace(0, 1, steps)
    if spacing == "karras":
        levels = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    else:
        levels = np.exp(math.log(sigma_max) + ramp * (math.log(sigma_min) - math.log(sigma_max)))
    s = torch.from_numpy(np.append(levels, 0.0 if ends_in_image else sigma_min))
    c_in = 1 / (s.square() + sigma_data**2).sqrt()
    scale = float(c_in[0]) * (sigma_max if initial_std is None else initial_std)
    p_x, p_o = sigma_data**2 * c_in[:-1], s[:-1] * sigma_data * c_in[:-1]
    alpha = torch.cat([c_in[:-1], c_in.new_ones(1)])
    sigma, rows = alpha * s, torch.arange(steps)
    if method in ("heun", "euler"):
        corrected = (rows < steps - 1) & (method == "heun")
        at, columns = predictor_corrector(alpha, sigma, corrected)
    else:
        second_order = (rows >= 0) & (order == 2) & ((rows < steps - 1) | (not first_order_last))
        at, columns = rows, multistep(alpha, sigma, second_order=second_order, solver=solver, stochastic=method == "sde")
    sign = 1.0 if prediction == "eps" else -1.0
    predicted = {"p_x": p_x[at], "p_o": sign * p_o[at], "c": p_x[at] * 0 + clip}
    c_noise = (0.25 * s[:-1].float().log())[at]
    return StepTable.from_columns(c_noise, {**predicted, **columns}, initial_scale=scale, draws_in_vain=method == "sde")
