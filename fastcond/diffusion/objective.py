"""The training loss: a weighted mean squared error on eps, v or x_0, and of a learned variance the variational bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from fastcond.config import Prediction
from fastcond.diffusion.prediction import add_noise, training_target
from fastcond.diffusion.schedule import NoiseSchedule
from fastcond.diffusion.variational_bound import HYBRID_WEIGHT, VariationalBound


def loss_weights(
    schedule: NoiseSchedule, prediction: Prediction, weighting: Literal["mse", "min_snr"], gamma: float = 5.0
) -> Tensor:
    """Weight of each timestep's squared error, float64 [T].

    "mse" is 1 everywhere. "min_snr" is min(snr, gamma) on x_0's error, divided by snr for eps and by snr + 1 for v, since
    |eps error|^2 = snr |x_0 error|^2 and |v error|^2 = (snr + 1) |x_0 error|^2 (Hang et al. 2023, section 3.4).
    """
    snr = schedule.signal_to_noise()
    if weighting == "mse":
        return torch.ones_like(snr)
    if weighting != "min_snr":
        raise ValueError(f"weighting is {weighting!r}; choose mse or min_snr")
    clipped = snr.clamp(max=gamma)
    return {"eps": clipped / snr, "v": clipped / (snr + 1), "x_0": clipped}[prediction]


def diffusion_loss(
    denoiser: Callable[[Tensor, Tensor, Tensor], Tensor],
    x_0: Tensor,
    label: Tensor,
    timestep: Tensor,
    eps: Tensor,
    *,
    alphas_cumprod: Tensor,
    weights: Tensor,
    prediction: Prediction,
    bound: VariationalBound | None = None,
) -> Tensor:
    """Mean over the batch of weight(t) |output - target|^2 per element, and where there is a `bound` lambda T L_t.

    Args:
        denoiser: (x_t, timestep, label) -> output, [B, C, H, W], or with a bound [B, 2C, H, W], of which the second half is the
            variance's. T is there because the bound is a sum over timesteps, of which one is drawn.
        x_0, eps: float32 [B, C, H, W]. label, timestep: int64 [B].
        alphas_cumprod, weights: float32 [T] on the same device.
    Returns: float32 scalar.
    Source: Ho et al. 2020, eq. 14 (eps); Salimans & Ho 2022 (v); Nichol & Dhariwal 2021, eq. 16 (the bound).
    """
    a = alphas_cumprod[timestep][:, None, None, None]
    x_t = add_noise(x_0, eps, a)
    output = denoiser(x_t, timestep, label)
    if bound is not None:
        output, v = output.chunk(2, dim=1)
    error = (output.float() - training_target(prediction, x_0, eps, a)).square().mean(dim=(1, 2, 3))
    loss = (weights[timestep] * error).mean()
    if bound is None:
        return loss
    return loss + HYBRID_WEIGHT * len(alphas_cumprod) * bound(x_0, x_t, timestep, output, v).mean().float()
