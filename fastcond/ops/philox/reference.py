"""Philox4x32-10 and Box-Muller in plain PyTorch: the definition of correct.

    key     = (image index, run seed)
    counter = (element // 4, 0, step, stream)
    ten rounds of
        (c0, c1, c2, c3) <- (hi(M1 c2) ^ c1 ^ k0,  lo(M1 c2),  hi(M0 c0) ^ c3 ^ k1,  lo(M0 c0))
        (k0, k1)         <- (k0 + W0, k1 + W1)

    u  = (float32(word) + 1/2) 2^-32      in float32, in (0, 1]
    z0 = sqrt(-2 ln u0) cos(2 pi u1),   z1 = sqrt(-2 ln u0) sin(2 pi u1)        on the lanes (0, 1) and (2, 3)

Sources: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3; Box & Muller 1958.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10


def _multiply(words: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a 32 x 32 bit product. int64 wraps, but the 64 bits are those of the unsigned product."""
    product = words * multiplier
    return (product >> 32) & MASK, product & MASK


def philox4x32(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The block function: four counter words and two key words, int64 in [0, 2**32), broadcast, to four words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        high0, low0 = _multiply(c0, MULTIPLIERS[0])
        high1, low1 = _multiply(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + KEY_INCREMENTS[0]) & MASK, (k1 + KEY_INCREMENTS[1]) & MASK
    return c0, c1, c2, c3


def _blocks(seeds: Tensor, step: Tensor, count: int, stream: int) -> Tensor:
    """All words of the counters that `count` elements need: int64 [B, ceil(count / 4), 4]."""
    seeds = seeds & MASK
    key = seeds[:, 1:2], seeds[:, 0:1]
    block = torch.arange((count + 3) // 4, device=seeds.device).unsqueeze(0)
    zero = torch.zeros_like(block)
    return torch.stack(philox4x32((block, zero, zero + (step.reshape(1, 1) & MASK), zero + stream), key), dim=-1)


def philox_bits(seeds: Tensor, step: Tensor, count: int, stream: int) -> Tensor:
    """Words 0 to count - 1 of each image. seeds int64 [B, 2], step int64 with one element -> int64 [B, count]."""
    return _blocks(seeds, step, count, stream).flatten(1)[:, :count].contiguous()


def philox_normal(seeds: Tensor, step: Tensor, shape: Sequence[int], stream: int) -> Tensor:
    """Standard normals, one an element of `shape` in logical order. Same inputs -> float32 [B, *shape], contiguous."""
    count = math.prod(shape)
    # u is rounded to float32 by definition; from there on fp64, so that the reference is exact to one rounding.
    uniform = ((_blocks(seeds, step, count, stream).to(torch.float32) + 0.5) * 2.0**-32).to(torch.float64)
    radius = torch.sqrt(-2.0 * torch.log(uniform[..., 0::2]))
    angle = (2.0 * math.pi) * uniform[..., 1::2]
    normal = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
    return normal.flatten(1)[:, :count].to(torch.float32).reshape(seeds.shape[0], *shape).contiguous()
