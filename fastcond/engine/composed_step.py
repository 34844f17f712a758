"""A row of a sampler with more to it than one pass over memory can do: composed of PyTorch's ops.

g  = u + w (c - u)                                    classifier-free guidance
g  = phi g std(c)/std(g) + (1 - phi) g                guidance rescale, where it is asked for
x0 = p_x x + p_o g
x0 = clamp(x0, -s, s) / s,  s = max(1, percentile(|x0|))      dynamic thresholding in place of clamp(x0, -c, c)
x' = k_x x + k_0 x0 + k_o g + k_h h + k_n z
x' = x' + std(v) z                                    noise of the size that the network's second C channels v give
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastcond.diffusion import DynamicThreshold, StepTable, rescale_guidance
from fastcond.ops import diffusion_step, philox_normal
from fastcond.ops.philox import STEP_NOISE


def needs_composition(table: StepTable) -> bool:
    """Whether rows of this table are more than `diffusion_step`, whatever the run asks for."""
    return table.threshold is not None or table.learned_noise is not None


def composed_step(
    x: Tensor,
    out_cond: Tensor,
    out_uncond: Tensor | None,
    table: StepTable,
    row: Tensor,
    *,
    seeds: Tensor,
    guidance: Tensor,
    history: Tensor | None,
    out: Tensor,
    out_x_0: Tensor,
    guidance_rescale: float = 0.0,
    percentile: float | None = None,
    noise: Tensor | None = None,
    cfg_plus_plus: bool = False,
) -> None:
    """`fastcond.ops.diffusion_step` with guidance rescale, dynamic thresholding, learned variances and noise from elsewhere.

    Args: as `diffusion_step`, float32; guidance [B]; guidance_rescale is phi in [0, 1], 0 is off, and acts where out_uncond is
        given; percentile of dynamic thresholding in (0, 1], None is the table's own or off; noise: z, x's shape, None is philox.
        cfg_plus_plus: u takes g's place in k_o g, where out_uncond is given: x_0 is guided, what is noised again is not.
        The outputs may have 2C channels. Guidance acts on the first C; the others, v, are those of out_cond.
    Raises: ValueError where the table's noise is learned and there is no v.
    Source: Lin et al. 2024, eq. 14 to 16 (rescale); Saharia et al. 2022, section 2.3 (thresholding); Nichol & Dhariwal 2021,
        eq. 15 (learned variances); Chung et al. 2024, algorithm 2 (CFG++).
    """
    channels, learned = x.shape[1], table.learned_noise
    c, v = out_cond[:, :channels].float(), out_cond[:, channels:].float()
    if learned is not None and v.shape != x.shape:
        found = f"the network has {out_cond.shape[1]} channels for {channels} of the image"
        raise ValueError(f"{found}; this sampler's learned variance needs {2 * channels}; use fixed_small or fixed_large")
    g = renoised = c
    if out_uncond is not None:
        u = out_uncond[:, :channels].float()
        g = u + guidance.reshape(-1, *[1] * (x.dim() - 1)) * (c - u)
        g = rescale_guidance(g, c, guidance_rescale) if guidance_rescale else g
        renoised = u if cfg_plus_plus else g
    threshold = table.threshold if percentile is None else DynamicThreshold(percentile)
    if threshold is None and noise is None and learned is None and renoised is g:
        diffusion_step(x, g, None, table, row, seeds=seeds, history=history, out=out, out_x_0=out_x_0)
        return
    p_x, p_o, clip, k_x, k_0, k_o, k_h, k_n = table.coefficients.index_select(0, row)[0].unbind()
    x_0 = p_x * x + p_o * g
    x_0 = torch.clamp(x_0, -clip, clip) if threshold is None else threshold(x_0)
    x_next = k_x * x + k_0 * x_0 + k_o * renoised
    if table.keeps_history:
        assert history is not None, "the caller keeps it"
        x_next = x_next + k_h * history
    if table.draws_noise or learned is not None:
        z = philox_normal(seeds, x.shape[1:], step=row, stream=STEP_NOISE) if noise is None else noise
        x_next = x_next + (k_n if learned is None else learned.std(v, row)) * z
    for half in out.split(len(x)):
        half.copy_(x_next)
    out_x_0.copy_(x_0)
