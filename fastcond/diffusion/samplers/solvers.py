"""Solvers of the probability-flow ODE and of its SDE as columns of a step table, for states of any scale.

Row i goes from x = alpha_i x0 + sigma_i eps to alpha_{i+1} x0 + sigma_{i+1} eps. With s = sigma/alpha, y = x/alpha the ODE is
dy/ds = (y - x0)/s whatever the scale alpha is: sqrt(a) where the state keeps its variance, 1 where it is y itself, EDM's c_in
where it is what EDM's network is fed. alpha and sigma are float64 [N + 1], and a run ends in the image, (1, 0), or short of it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Columns = dict[str, Tensor]
SecondOrder = Literal["midpoint", "heun"]


def first_order(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """(k_x, k_0) of x' = k_x x + k_0 x0, exact where x0 does not change along the way. float64 [N] each.

    k_x = sigma'/sigma and k_0 = alpha' - alpha sigma'/sigma, which is alpha' (1 - e^-h) without its infinities.
    Source: Lu et al. 2022, "DPM-Solver++", eq. 9 at first order; with x0 in place, DDIM (Song et al. 2021, eq. 12, eta = 0) and
    Euler's method in s (Karras et al. 2022, algorithm 1 without its correction).
    """
    k_x = sigma[1:] / sigma[:-1]
    return k_x, alpha[1:] - alpha[:-1] * k_x


def multistep(
    alpha: Tensor,
    sigma: Tensor,
    *,
    second_order: Tensor | None = None,
    solver: SecondOrder = "midpoint",
    stochastic: bool = False,
) -> Columns:
    """DPM-Solver++ 2M, or its SDE form: two orders for one evaluation, the second from the prediction of the row before.

    With h = log(s/s') and h_before that of the row before, D1 = (x0 - x0_before) h / h_before:
        ODE  x' = sigma'/sigma x + alpha' (1 - e^-h) x0 + alpha' m D1,
             m = (1 - e^-h)/2 (midpoint), (e^-h - 1)/h + 1 (heun)
        SDE  x' = sigma'/sigma e^-h x + alpha' (1 - e^-2h) x0 + alpha' m D1 + sigma' sqrt(1 - e^-2h) z,
             m = (1 - e^-2h)/2 (midpoint), 1 - (1 - e^-2h)/2h (heun)

    Args: second_order: bool [N], the rows that have the D1 term (row 0 never has); None is all but the last.
    Source: Lu et al. 2022, "DPM-Solver++", algorithm 2 and appendix A (SDE-DPM-Solver++(2M)).
    """
    shrink = sigma[1:] / sigma[:-1] * alpha[:-1] / alpha[1:]  # e^-h, 0 where s is infinite or s' is 0
    h = -shrink.log()
    if second_order is None:
        second_order = torch.arange(len(h)) < len(h) - 1
    second_order = second_order & (torch.arange(len(h)) > 0)
    h_before = torch.cat([h[:1] * 0 + torch.inf, h[:-1]])
    k_x, k_0 = first_order(alpha, sigma)
    columns = {"k_x": k_x}
    if stochastic:
        k_0 = alpha[1:] * (1 - shrink.square())
        columns = {"k_x": k_x * shrink, "k_n": sigma[1:] * (1 - shrink.square()).clamp(min=0).sqrt()}
    if solver == "midpoint":
        slope = k_0 * h / 2
    elif stochastic:
        slope = alpha[1:] * (h - (1 - shrink.square()) / 2)
    else:
        slope = alpha[1:] * (shrink - 1 + h)
    # Behind a row from pure noise, whose h is infinite, the order is the first.
    k_1 = torch.where(second_order & h_before.isfinite(), slope / h_before, 0.0)
    return {**columns, "k_0": k_0 + k_1, "k_h": -k_1}


def predictor_corrector(alpha: Tensor, sigma: Tensor, corrected: Tensor) -> tuple[Tensor, Columns]:
    """Heun's method, a predictor and where `corrected`, bool [N], a corrector behind it, as rows of their own.

        predictor   y' = y + (s' - s) (y - x0)/s
        corrector   y" = y + (s' - s) [ (y - x0)/s + (y' - x0')/s' ] / 2,   x0' the prediction at (y', s')

    The corrector starts again from y, which a row of a table no longer has. But y' and x0, the history h, determine y, and put
    in, all of y and y' cancels but one y':

        x" = x' + w (x0' - h),   w = alpha' (s - s') / (2 s')

    so the corrector is a row with k_x = 1, k_0 = w, k_h = -w.
    Returns: (at, columns): at which of the N + 1 states a row evaluates the network, int64 [rows].
    Source: Karras et al. 2022, algorithm 2 (without churn).
    """
    steps = len(corrected)
    ratio = sigma[:-1] / alpha[:-1] * alpha[1:] / sigma[1:]  # s / s'
    w = alpha[1:] * (ratio - 1) / 2
    # Row numbers: every step has a predictor, behind it its corrector where it has one.
    predictor = torch.arange(steps) + torch.cumsum(corrected, 0) - corrected.long()
    corrector = predictor[corrected] + 1
    rows = steps + len(corrector)
    at = torch.empty(rows, dtype=torch.int64)
    at[predictor] = torch.arange(steps)
    at[corrector] = torch.arange(steps)[corrected] + 1
    k_x, k_0, k_h = torch.zeros(3, rows, dtype=torch.float64)
    k_x[predictor], k_0[predictor] = first_order(alpha, sigma)
    k_x[corrector], k_0[corrector], k_h[corrector] = 1.0, w[corrected], -w[corrected]
    return at, {"k_x": k_x, "k_0": k_0, "k_h": k_h}
