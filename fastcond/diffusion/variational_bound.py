"""What learning the variance of the reverse process adds to the loss: a term of the variational bound (Nichol & Dhariwal 2021).

With a, a' the alphas_cumprod at t and t - 1 (1 before the first), beta = 1 - a/a' and the second C channels v of the network:

    q(x' | x_t, x_0) = N(k_0 x_0 + k_x x_t, beta~),   k_0 = sqrt(a') beta / (1 - a),   beta~ = beta (1 - a') / (1 - a)
    p(x' | x_t)      = N(k_0 x_0^ + k_x x_t, sigma^2),   log sigma^2 = f log beta + (1 - f) log beta~,   f = (v + 1)/2   (eq. 15)

    L_t = KL(q || p),   L_0 = -log p(x_0 | x_1) over the 256 levels of a pixel      (Ho et al. 2020, eq. 5 and 13)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastcond.config import Prediction
from fastcond.diffusion.prediction import x_0_coefficients
from fastcond.diffusion.schedule import NoiseSchedule

HYBRID_WEIGHT = 1e-3  # lambda of L_simple + lambda L_vlb (Nichol & Dhariwal 2021, eq. 16)
_HALF_LEVEL = 1 / 255  # of 256 levels of [-1, 1]


@dataclass(frozen=True)
class VariationalBound:
    """log_low, log_high: log beta~ and log beta; k_0; p_x, p_o: x_0^ = p_x x_t + p_o output. All float64 [T]."""

    log_low: Tensor
    log_high: Tensor
    k_0: Tensor
    p_x: Tensor
    p_o: Tensor

    @classmethod
    def of(cls, schedule: NoiseSchedule, prediction: Prediction, device: torch.device | None = None) -> VariationalBound:
        """Of a schedule of at least 2 timesteps."""
        a = schedule.alphas_cumprod
        before = torch.cat([a.new_ones(1), a[:-1]])
        beta = 1 - a / before
        low = beta * (1 - before) / (1 - a)
        low[0] = low[1]  # it is 0 there: the last step has no noise, and L_0 takes the next one's (Ho et al. 2020, section 3.2)
        columns = (low.log(), beta.log(), before.sqrt() * beta / (1 - a), *x_0_coefficients(prediction, a))
        return cls(*(column.to(device) for column in columns))

    def __call__(self, x_0: Tensor, x_t: Tensor, timestep: Tensor, output: Tensor, v: Tensor) -> Tensor:
        """L_t of each image, in bits and as a mean over its elements, float64 [B].

        Args: x_0, of 256 levels in [-1, 1], x_t, and the network's output and v, all [B, C, H, W]; timestep: int64 [B]. Of the
            output there is no gradient: v alone learns from the bound.
        Source: Nichol & Dhariwal 2021, eq. 14 to 16; Ho et al. 2020, eq. 13.
        """
        # float64: a pixel far from what p expects is as good as impossible, of which float32 makes log 0.
        low, high, k_0, p_x, p_o = (
            column[timestep][:, None, None, None] for column in (self.log_low, self.log_high, self.k_0, self.p_x, self.p_o)
        )
        x_0, v = x_0.double(), v.double()
        log_variance = torch.lerp(low, high, (v + 1) / 2)
        expected = p_x * x_t.double() + p_o * output.detach().double()
        divergence = gaussian_divergence(k_0 * (x_0 - expected), low, log_variance)
        # Before the first timestep k_0 is 1, and p's mean is x_0^ itself.
        likelihood = level_log_likelihood(x_0, expected, log_variance / 2)
        nats = torch.where(timestep[:, None, None, None] == 0, -likelihood, divergence)
        return nats.mean(dim=(1, 2, 3)) / math.log(2)


def gaussian_divergence(difference: Tensor, log_first: Tensor, log_second: Tensor) -> Tensor:
    """KL(N(m + difference, first) || N(m, second)) by logarithms of the variances, in nats."""
    return 0.5 * (log_second - log_first - 1 + torch.exp(log_first - log_second) + difference.square() * torch.exp(-log_second))


def level_log_likelihood(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """log of the probability of x's level, of 256 in [-1, 1], under N(mean, std^2); the outermost take all beyond them."""
    centred, inverse = x - mean, torch.exp(-log_std)
    lower, upper = (centred - _HALF_LEVEL) * inverse, (centred + _HALF_LEVEL) * inverse
    # P(lower < z < upper) = P(-upper < z < -lower): in the lower tail, where logarithms of the distribution have digits.
    flipped = lower + upper > 0
    lower, upper = torch.where(flipped, -upper, lower), torch.where(flipped, -lower, upper)
    log_lower, log_upper = torch.special.log_ndtr(lower), torch.special.log_ndtr(upper)
    between = log_upper + torch.log(-torch.expm1(log_lower - log_upper))
    first, last = x < -1 + _HALF_LEVEL, x > 1 - _HALF_LEVEL
    below = torch.special.log_ndtr((centred + _HALF_LEVEL) * inverse)
    above = torch.special.log_ndtr(-(centred - _HALF_LEVEL) * inverse)
    return torch.where(first, below, torch.where(last, above, between))
