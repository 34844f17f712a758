"""diffusers' noise schedules to the bit: betas and their product in float32, in the order in which diffusers computes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace", "exp")

_LARGEST_BETA = 0.999  # Nichol & Dhariwal 2021, section 3.2


def betas_of(name: str, num_timesteps: int, beta_start: float, beta_end: float) -> Tensor:
    """float32 [T]: the betas that diffusers' schedulers make of `beta_schedule=name`.

    linear        from beta_start to beta_end                                            (Ho et al. 2020, section 4)
    scaled_linear the square of what goes from sqrt(beta_start) to sqrt(beta_end)         (Rombach et al. 2022)
    sigmoid       beta_start + sigmoid(-6 .. 6) (beta_end - beta_start)                   (Xu et al. 2022, GeoDiff)
    squaredcos_cap_v2, laplace, exp   1 - f((i+1)/T) / f(i/T), at most 0.999: f = cos^2((t + 0.008)/1.008 pi/2) (Nichol & Dhariwal
        2021, eq. 17), sqrt(snr/(1 + snr)) of a Laplace log snr (Hang & Gu 2024), exp(-12 t)
    Raises: ValueError for another name.
    """
    T = num_timesteps
    if name == "linear":
        return torch.linspace(beta_start, beta_end, T, dtype=torch.float32)
    if name == "scaled_linear":
        return torch.linspace(beta_start**0.5, beta_end**0.5, T, dtype=torch.float32) ** 2
    if name == "sigmoid":
        return torch.sigmoid(torch.linspace(-6, 6, T, dtype=torch.float32)) * (beta_end - beta_start) + beta_start
    if name not in _SIGNALS:
        raise ValueError(f"beta_schedule is {name!r}; choose one of {', '.join(BETA_SCHEDULES)}")
    f = _SIGNALS[name]
    return torch.tensor([min(1 - f((i + 1) / T) / f(i / T), _LARGEST_BETA) for i in range(T)], dtype=torch.float32)


def _cosine(t: float) -> float:
    return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2


def _laplace(t: float) -> float:
    half_log_snr = -0.5 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * math.fabs(0.5 - t) + 1e-6)
    snr = math.exp(half_log_snr)
    return math.sqrt(snr / (1 + snr))


def _exponential(t: float) -> float:
    return math.exp(t * -12.0)


_SIGNALS: dict[str, Callable[[float], float]] = {"squaredcos_cap_v2": _cosine, "laplace": _laplace, "exp": _exponential}


def alphas_cumprod_of(betas: Tensor | Sequence[float], *, rescale_zero_snr: bool = False) -> Tensor:
    """float64 [T] holding float32 values: the running product of 1 - beta.

    Args: betas: float32 [T]. rescale_zero_snr: shift and scale the root so that it ends in 0 (Lin et al. 2024, algorithm 1), by
        way of the betas, as diffusers does.
    """
    betas = torch.as_tensor(betas, dtype=torch.float32)
    if rescale_zero_snr:
        root = torch.cumprod(1.0 - betas, dim=0).sqrt()
        first, last = root[0].clone(), root[-1].clone()
        a = ((root - last) * (first / (first - last))) ** 2
        betas = 1 - torch.cat([a[:1], a[1:] / a[:-1]])
    return torch.cumprod(1.0 - betas, dim=0).double()
