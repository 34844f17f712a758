"""Philox4x32-10 and Box-Muller in Triton: the kernels for GPUs, and the device functions that diffusion_step draws with.

The arithmetic is that of kernels/include/fastcond/philox.h, operation by operation, and is compiled without fused
multiply-adds and with correctly rounded divisions and roots: words and normals have the bits of the native CPU kernel.
Own series stand for ln, sin and cos because the library's bring local memory, branches and fp64 in their range reduction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 512  # counters a program, four words each
_WARPS = 4


@triton.jit
def philox4x32(c0, c2, c3, k0, k1):
    """Four uint32 words of the counter (c0, 0, c2, c3) under the key (k0, k1), all uint32, broadcast together."""
    c1 = tl.zeros_like(c0)
    for _ in tl.static_range(10):
        low0, high0 = c0 * 0xD2511F53, tl.umulhi(c0, 0xD2511F53)
        low1, high1 = c2 * 0xCD9E8D57, tl.umulhi(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def image_words(seeds, image, block, step, stream):
    """The words of counters `block` (uint32) of image `image` of seeds int64 [B, 2]: (run seed, image index) a row."""
    run_seed = tl.load(seeds + 2 * image).to(tl.uint32)
    image_index = tl.load(seeds + 2 * image + 1).to(tl.uint32)
    zero = tl.zeros_like(block)
    return philox4x32(block, zero + step.to(tl.uint32), zero + stream, zero + image_index, zero + run_seed)


@triton.jit
def _uniform(word):
    """u = (float32(word) + 1/2) 2^-32, in [2^-33, 1]. The halves convert exactly, so their sum rounds once."""
    rounded = (word >> 16).to(tl.int32).to(tl.float32) * 65536.0 + (word & 0xFFFF).to(tl.int32).to(tl.float32)
    return (rounded + 0.5) * (1.0 / 4294967296.0)


@triton.jit
def _log_positive(u):
    """ln u of a normal positive u: u = 2^e m with m in [sqrt 1/2, sqrt 2), ln m = 2 atanh(s), s = (m - 1) / (m + 1)."""
    bits = u.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    s = tl.div_rn(f, f + 2.0)
    t = s * s
    series = t * (1.0 / 3 + t * (1.0 / 5 + t * (1.0 / 7 + t * (1.0 / 9))))
    e = exponent.to(tl.float32)
    # ln 2 in two parts: the first has 15 bits, so its product with the exponent is exact.
    return e * (22713.0 / 32768) + (e * 1.4286068203094172e-6 + 2.0 * (s + s * series))


@triton.jit
def _cos_sin_turns(u):
    """cos and sin of 2 pi u, u in [0, 1]: the nearest quarter turn, and series over the eighth turn that is left."""
    quarters = 4.0 * u
    quadrant = (quarters + 0.5).to(tl.int32)
    x = (quarters - quadrant.to(tl.float32)) * 1.57079632679489662
    t = x * x
    s = x + x * (t * (-1.0 / 6 + t * (1.0 / 120 + t * (-1.0 / 5040 + t * (1.0 / 362880)))))
    c = 1.0 + t * (-1.0 / 2 + t * (1.0 / 24 + t * (-1.0 / 720 + t * (1.0 / 40320 + t * (-1.0 / 3628800)))))
    # Odd quarters exchange the two; the cosine is negative in quarters 1 and 2, the sine in 2 and 3.
    odd = (quadrant & 1) != 0
    sine = tl.where(odd, c, s).to(tl.int32, bitcast=True) ^ ((quadrant & 2) << 30)
    cosine = tl.where(odd, s, c).to(tl.int32, bitcast=True) ^ (((quadrant + 1) & 2) << 30)
    return cosine.to(tl.float32, bitcast=True), sine.to(tl.float32, bitcast=True)


@triton.jit
def box_muller(word0, word1):
    """Two standard normals from two words."""
    radius = tl.sqrt_rn(-2.0 * _log_positive(_uniform(word0)))
    cosine, sine = _cos_sin_turns(_uniform(word1))
    return radius * cosine, radius * sine


@triton.jit
def interleave(z0, z1, z2, z3):
    """Four [N] as one [4 N], so that element 4 n + k is z_k[n]."""
    return tl.reshape(tl.join(tl.join(z0, z2), tl.join(z1, z3)), (4 * z0.shape[0],))


@triton.jit
def draw_kernel(seeds, step, out, COUNT: tl.constexpr, STREAM: tl.constexpr, NORMAL: tl.constexpr, BLOCK: tl.constexpr):
    """One program: BLOCK counters of one image; out [B, COUNT], int64 words or float32 normals."""
    programs: tl.constexpr = (COUNT + 4 * BLOCK - 1) // (4 * BLOCK)
    image = (tl.program_id(0) // programs).to(tl.int64)
    first = tl.program_id(0) % programs * BLOCK
    counter = (first + tl.arange(0, BLOCK)).to(tl.uint32)
    w0, w1, w2, w3 = image_words(seeds, image, counter, tl.load(step), STREAM)
    element = 4 * first + tl.arange(0, 4 * BLOCK)
    target = out + image * COUNT + element
    if NORMAL:
        z0, z1 = box_muller(w0, w1)
        z2, z3 = box_muller(w2, w3)
        tl.store(target, interleave(z0, z1, z2, z3), mask=element < COUNT)
    else:
        tl.store(target, interleave(w0, w1, w2, w3).to(tl.int64), mask=element < COUNT)


def _draw(seeds: Tensor, step: Tensor, out: Tensor, count: int, stream: int, normal: bool) -> None:
    programs = seeds.shape[0] * triton.cdiv(count, 4 * _BLOCK)
    if programs:
        draw_kernel[(programs,)](
            seeds.contiguous(),
            step,
            out,
            COUNT=count,
            STREAM=stream,
            NORMAL=normal,
            BLOCK=_BLOCK,
            num_warps=_WARPS,
            enable_fp_fusion=False,
        )


def philox_bits(seeds: Tensor, step: Tensor, count: int, stream: int) -> Tensor:
    """`reference.philox_bits` on the GPU."""
    out = seeds.new_empty((seeds.shape[0], count))
    _draw(seeds, step, out, count, stream, normal=False)
    return out


def philox_normal(seeds: Tensor, step: Tensor, shape: Sequence[int], stream: int) -> Tensor:
    """`reference.philox_normal` on the GPU, equal within a few float32 roundings, and bit-equal to the native CPU kernel."""
    out = torch.empty((seeds.shape[0], *shape), dtype=torch.float32, device=seeds.device)
    _draw(seeds, step, out, math.prod(shape), stream, normal=True)
    return out
