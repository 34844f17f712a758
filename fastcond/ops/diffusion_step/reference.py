"""One row of a sampler's table in plain PyTorch: the definition of correct.

g  = out_u + w (out_c - out_u)
x0 = clamp(p_x x + p_o g, -c, c)
x' = k_x x + k_0 x0 + k_o g + k_h h + k_n z
h' = x0
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastcond.ops.philox import STEP_NOISE, philox_normal


def step(
    x: Tensor,
    out_cond: Tensor,
    out_uncond: Tensor | None,
    history: Tensor | None,
    coefficients: Tensor,
    row: Tensor,
    guidance: Tensor | None,
    seeds: Tensor,
    draws_noise: bool,
) -> tuple[Tensor, Tensor]:
    """Returns (x of the next row, x_0 prediction), fp32, in x's memory format. Nothing is read back to the host."""
    noise = philox_normal(seeds, x.shape[1:], step=row, stream=STEP_NOISE) if draws_noise else None
    x_next, x_0 = update(x, out_cond, out_uncond, history, coefficients.index_select(0, row)[0], guidance, noise)
    return _strided_like(x_next, x), _strided_like(x_0, x)


def update(
    x: Tensor,
    out_cond: Tensor,
    out_uncond: Tensor | None,
    history: Tensor | None,
    coefficients: Tensor,
    guidance: Tensor | None,
    noise: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(x of the next row, x_0 prediction), of a row's coefficients [8] and the noise z that is given."""
    p_x, p_o, c, k_x, k_0, k_o, k_h, k_n = coefficients.unbind()
    g = out_cond.float()
    if out_uncond is not None:
        assert guidance is not None, "guided steps carry their scale"
        w = guidance.reshape(-1, *[1] * (x.dim() - 1))
        u = out_uncond.float()
        g = u + w * (g - u)
    x_0 = torch.clamp(p_x * x + p_o * g, -c, c)
    x_next = k_x * x + k_0 * x_0 + k_o * g
    if history is not None:
        x_next = x_next + k_h * history
    if noise is not None:
        x_next = x_next + k_n * noise
    return x_next, x_0


def step_into(
    x: Tensor,
    out_cond: Tensor,
    out_uncond: Tensor | None,
    history: Tensor | None,
    coefficients: Tensor,
    row: Tensor,
    guidance: Tensor | None,
    seeds: Tensor,
    draws_noise: bool,
    x_next: Tensor,
    x_0: Tensor,
) -> None:
    """`step` written into x_0 and x_next, the latter [B, C, H, W] or both halves of [2B, C, H, W].

    x may share x_next's memory, and history x_0's.
    """
    stepped, predicted = step(x, out_cond, out_uncond, history, coefficients, row, guidance, seeds, draws_noise)
    for half in x_next.split(x.shape[0]):
        half.copy_(stepped)
    x_0.copy_(predicted)


def _strided_like(value: Tensor, x: Tensor) -> Tensor:
    return value if value.stride() == x.stride() else torch.empty_like(x).copy_(value)
