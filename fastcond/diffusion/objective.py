"""The training loss: a weighted mean squared error on eps, v or x_0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from fastcond.config import Prediction
from fastcond.diffusion.prediction import add_noise, training_target
from fastcond.diffusion.schedule import NoiseSchedule


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
) -> Tensor:
    """Mean over the batch of weight(t) |output - target|^2 per element.

    Args:
        denoiser: (x_t, timestep, label) -> output, [B, C, H, W].
        x_0, eps: float32 [B, C, H, W]. label, timestep: int64 [B].
        alphas_cumprod, weights: float32 [T] on the same device.
    Returns: float32 scalar.
    Source: Ho et al. 2020, eq. 14 (eps); Salimans & Ho 2022 (v).
    """
    a = alphas_cumprod[timestep][:, None, None, None]
    output = denoiser(add_noise(x_0, eps, a), timestep, label)
    error = (output.float() - training_target(prediction, x_0, eps, a)).square().mean(dim=(1, 2, 3))
    return (weights[timestep] * error).mean()
