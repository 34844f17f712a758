"""A row of a sampler with what needs a mean over an image first, and so cannot be one pass: composed of PyTorch's ops.

g  = u + w (c - u)                                    classifier-free guidance
g  = phi g std(c)/std(g) + (1 - phi) g                guidance rescale, where it is asked for
x0 = p_x x + p_o g
x0 = clamp(x0, -s, s) / s,  s = max(1, percentile(|x0|))      dynamic thresholding in place of clamp(x0, -c, c)
x' = k_x x + k_0 x0 + k_o g + k_h h + k_n z
"""

from __future__ import annotations

from torch import Tensor

from fastcond.diffusion import StepTable, dynamic_threshold, rescale_guidance
from fastcond.ops import diffusion_step, philox_normal
from fastcond.ops.philox import STEP_NOISE


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
) -> None:
    """`fastcond.ops.diffusion_step` with guidance rescale and dynamic thresholding.

    Args: as `diffusion_step`, float32; guidance [B]; guidance_rescale is phi in [0, 1], 0 is off, and acts where out_uncond is
        given; percentile of dynamic thresholding in (0, 1], None is off.
    Source: Lin et al. 2024, eq. 14 to 16 (rescale); Saharia et al. 2022, section 2.3 (thresholding).
    """
    g = out_cond.float()
    if out_uncond is not None:
        u = out_uncond.float()
        guided = u + guidance.reshape(-1, *[1] * (x.dim() - 1)) * (g - u)
        g = rescale_guidance(guided, g, guidance_rescale) if guidance_rescale else guided
    if percentile is None:
        diffusion_step(x, g, None, table, row, seeds=seeds, history=history, out=out, out_x_0=out_x_0)
        return
    p_x, p_o, _, k_x, k_0, k_o, k_h, k_n = table.coefficients.index_select(0, row)[0].unbind()
    x_0 = dynamic_threshold(p_x * x + p_o * g, percentile)
    x_next = k_x * x + k_0 * x_0 + k_o * g
    if table.keeps_history:
        assert history is not None, "the caller keeps it"
        x_next = x_next + k_h * history
    if table.draws_noise:
        x_next = x_next + k_n * philox_normal(seeds, x.shape[1:], step=row, stream=STEP_NOISE)
    for half in out.split(len(x)):
        half.copy_(x_next)
    out_x_0.copy_(x_0)
