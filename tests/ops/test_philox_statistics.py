"""A thousand million normals, and four million blocks: the tails, the moments, the distribution, and no block twice."""

from __future__ import annotations

import math

import pytest
import torch

from fastcond.ops import native, philox_bits, philox_normal
from fastcond.ops.philox import STEP_NOISE

DRAWS = 1_000_000_000
IMAGES, CHUNK = 8, 1 << 24
BINS = 4096
EDGE = 7.0  # no normal lies beyond sqrt(66 ln 2) = 6.76


@pytest.mark.skipif(native.native is None, reason="the reference would take an hour")
@pytest.mark.timeout(900)
def test_a_thousand_million_normals() -> None:
    seeds = torch.stack((torch.full((IMAGES,), 2026), torch.arange(IMAGES)), dim=1)
    counts, sums, largest, n = torch.zeros(BINS, dtype=torch.float64), torch.zeros(4, dtype=torch.float64), 0.0, 0
    for step in range(math.ceil(DRAWS / CHUNK)):
        z = philox_normal(seeds, (CHUNK // IMAGES,), step=step, stream=STEP_NOISE).flatten()
        counts += torch.histc(z, BINS, -EDGE, EDGE).double()
        square = z * z
        # float32 sums in blocks of a few thousand, and those in float64: roundings stay far below a standard error.
        for power, value in enumerate((z, square, square * z, square * square)):
            sums[power] += value.view(-1, 4096).sum(dim=1).double().sum()
        largest, n = max(largest, float(z.abs().max())), n + CHUNK
    assert n >= DRAWS and counts.sum() == n
    assert 6.0 < largest < 6.77
    for power, (moment, variance) in enumerate(((0, 1), (1, 2), (0, 15), (3, 96))):
        assert abs(sums[power].item() / n - moment) < 4.5 * math.sqrt(variance / n)
    # Kolmogorov-Smirnov at the edges of the bins, at the level 0.001.
    edges = torch.linspace(-EDGE, EDGE, BINS + 1, dtype=torch.float64)[1:]
    distance = (counts.cumsum(0) / n - torch.special.ndtr(edges)).abs().max().item()
    assert distance < 1.95 / math.sqrt(n)


def test_no_block_comes_twice() -> None:
    """Over seeds, images, steps and elements that differ in one number only, and so in a few bits of key or counter."""
    runs, images, steps, counters = 8, 16, 16, 2048
    seeds = torch.cartesian_prod(torch.arange(runs), torch.arange(images))
    blocks = torch.cat([philox_bits(seeds, 4 * counters, step=step).view(-1, 4) for step in range(steps)])
    assert len(blocks) == runs * images * steps * counters
    # Half of a block is enough to tell blocks apart: 4 million random ones share 64 bits once in two million tries.
    for pair in (blocks[:, :2], blocks[:, 2:]):
        halves = (pair[:, 0] << 32) | pair[:, 1]
        assert len(halves.unique()) == len(halves)
