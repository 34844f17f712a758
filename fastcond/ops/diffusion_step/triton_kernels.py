"""One row of a sampler's table in Triton: one pass over memory, noise drawn in registers, the row index on the device.

The arithmetic is that of `reference.py` in its order, without fused multiply-adds, so that a step has the same bits at
any batch size and on any architecture, and those of the native CPU kernel.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastcond.ops.diffusion_step import reference
from fastcond.ops.philox import STEP_NOISE
from fastcond.ops.philox.triton_kernels import box_muller, image_words, interleave

_BLOCK = 1024  # elements a program
_WARPS = 4
_STREAM = tl.constexpr(STEP_NOISE)


@triton.jit
def _noise(seeds, image, step, first, BLOCK: tl.constexpr, C: tl.constexpr, HW: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Noise of the BLOCK elements from `first` on in memory; noise is counted in logical (C, H, W) order."""
    if CHANNELS_LAST:
        # Neighbours in memory belong to different counters, so each draws its own and keeps one of four words' normals.
        memory = first + tl.arange(0, BLOCK)
        element = memory % C * HW + memory // C
        w0, w1, w2, w3 = image_words(seeds, image, (element // 4).to(tl.uint32), step, _STREAM)
        second_pair = (element & 2) != 0
        z0, z1 = box_muller(tl.where(second_pair, w2, w0), tl.where(second_pair, w3, w1))
        z = tl.where((element & 1) != 0, z1, z0)
    else:
        counter = (first // 4 + tl.arange(0, BLOCK // 4)).to(tl.uint32)
        w0, w1, w2, w3 = image_words(seeds, image, counter, step, _STREAM)
        z0, z1 = box_muller(w0, w1)
        z2, z3 = box_muller(w2, w3)
        z = interleave(z0, z1, z2, z3)
    return z


@triton.jit
def step_kernel(
    x,
    out_cond,
    out_uncond,
    history,
    coefficients,
    row,
    guidance,
    seeds,
    x_next,
    x_next_half,
    x_0,
    C: tl.constexpr,
    HW: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    NOISE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: BLOCK elements of one image, in memory order. Pointers that a sampler does not use are None.

    x_next_half is the second half of a guided batch's input. x may be x_next, and history x_0: every element is read before
    it is written, by the thread that writes it.
    """
    count: tl.constexpr = C * HW
    programs: tl.constexpr = (count + BLOCK - 1) // BLOCK
    image = (tl.program_id(0) // programs).to(tl.int64)
    first = tl.program_id(0) % programs * BLOCK
    inside = first + tl.arange(0, BLOCK) < count
    at = image * count + first + tl.arange(0, BLOCK)
    index = tl.load(row)
    k = coefficients + 8 * index
    p_x, p_o, c, k_x = tl.load(k), tl.load(k + 1), tl.load(k + 2), tl.load(k + 3)
    k_0, k_o, k_h, k_n = tl.load(k + 4), tl.load(k + 5), tl.load(k + 6), tl.load(k + 7)
    x_t = tl.load(x + at, mask=inside)
    g = tl.load(out_cond + at, mask=inside).to(tl.float32)
    if out_uncond is not None:
        u = tl.load(out_uncond + at, mask=inside).to(tl.float32)
        g = u + tl.load(guidance + image) * (g - u)
    predicted = p_x * x_t + p_o * g
    predicted = tl.minimum(tl.maximum(predicted, -c, tl.PropagateNan.ALL), c, tl.PropagateNan.ALL)
    value = k_x * x_t + k_0 * predicted + k_o * g
    if history is not None:
        value = value + k_h * tl.load(history + at, mask=inside)
    if NOISE:
        value = value + k_n * _noise(seeds, image, index, first, BLOCK, C, HW, CHANNELS_LAST)
    tl.store(x_next + at, value, mask=inside)
    if x_next_half is not None:
        tl.store(x_next_half + at, value, mask=inside)
    tl.store(x_0 + at, predicted, mask=inside)


def _in_layout_of(x: Tensor, value: Tensor | None) -> Tensor | None:
    """`value` with x's strides, copied where it has others."""
    return value if value is None or value.stride() == x.stride() else torch.empty_like(x, dtype=value.dtype).copy_(value)


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
    """`reference.step_into` on the GPU. Nothing is read back to the host, so a captured graph advances with `row`."""
    batch, channels = x.shape[:2]
    last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    halves = list(x_next.split(batch)) if batch else []
    dense = last or x.is_contiguous()
    if not dense or x_0.stride() != x.stride() or any(half.stride() != x.stride() for half in halves):
        operands = (x, out_cond, out_uncond, history, coefficients, row, guidance, seeds, draws_noise)
        reference.step_into(*operands, x_next, x_0)
        return
    if x.numel() == 0:
        return
    per_image = x.numel() // batch
    step_kernel[(batch * triton.cdiv(per_image, _BLOCK),)](
        x,
        _in_layout_of(x, out_cond),
        _in_layout_of(x, out_uncond),
        _in_layout_of(x, history),
        coefficients.contiguous(),
        row,
        None if guidance is None else guidance.contiguous(),
        seeds.contiguous() if draws_noise else None,
        halves[0],
        halves[1] if len(halves) == 2 else None,
        x_0,
        C=channels,
        HW=per_image // channels,
        CHANNELS_LAST=last,
        NOISE=draws_noise,
        BLOCK=_BLOCK,
        num_warps=_WARPS,
        enable_fp_fusion=False,
    )


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
    """`reference.step` on the GPU."""
    x_next, x_0 = torch.empty_like(x), torch.empty_like(x)
    step_into(x, out_cond, out_uncond, history, coefficients, row, guidance, seeds, draws_noise, x_next, x_0)
    return x_next, x_0
