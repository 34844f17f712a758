"""What the network predicts, eps, v or x_0, and how each is turned into x_0 and eps.

With a = alphas_cumprod[t]:  x_t = sqrt(a) x_0 + sqrt(1 - a) eps,   v = sqrt(a) eps - sqrt(1 - a) x_0
(Salimans & Ho 2022, appendix D).
"""

from __future__ import annotations

from torch import Tensor

from fastcond.config import PREDICTIONS, Prediction


def add_noise(x_0: Tensor, eps: Tensor, a: Tensor) -> Tensor:
    """x_t = sqrt(a) x_0 + sqrt(1 - a) eps. x_0, eps [B, C, H, W]; a [B, 1, 1, 1] (Ho et al. 2020, eq. 4)."""
    return a.sqrt() * x_0 + (1 - a).sqrt() * eps


def training_target(prediction: Prediction, x_0: Tensor, eps: Tensor, a: Tensor) -> Tensor:
    """What the network's output is compared with. Shapes as in `add_noise`."""
    if prediction == "eps":
        return eps
    if prediction == "x_0":
        return x_0
    _require_known(prediction)
    return a.sqrt() * eps - (1 - a).sqrt() * x_0


def x_0_coefficients(prediction: Prediction, a: Tensor) -> tuple[Tensor, Tensor]:
    """(p_x, p_o) with x_0 = p_x x_t + p_o output. a: float64 [N]; returns two float64 [N].

    Raises: ValueError for eps where a is 0: pure noise minus its noise is nothing.
    """
    _require_known(prediction)
    if prediction == "x_0":
        return a * 0, a * 0 + 1
    if prediction == "v":
        return a.sqrt(), -(1 - a).sqrt()
    if bool((a <= 0).any()):
        raise ValueError("alphas_cumprod is 0 at a timestep, where eps does not determine x_0; use prediction v or x_0")
    return 1 / a.sqrt(), -((1 - a) / a).sqrt()


def eps_coefficients(prediction: Prediction, a: Tensor) -> tuple[Tensor, Tensor]:
    """(e_x, e_o) with eps = e_x x_t + e_o output. a: float64 [N], below 1; returns two float64 [N]."""
    _require_known(prediction)
    if prediction == "eps":
        return a * 0, a * 0 + 1
    if prediction == "v":
        return (1 - a).sqrt(), a.sqrt()
    return 1 / (1 - a).sqrt(), -(a / (1 - a)).sqrt()


def _require_known(prediction: str) -> None:
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction is {prediction!r}; choose one of {', '.join(PREDICTIONS)}")
