"""The weight of a 3x3 convolution of a map whose positions are doubled both ways, as four convolutions of the map itself.

An output's three taps one way fall on two positions: on those before and at its own where it is even, on those at and behind it
where it is odd. So each of the four phases has taps of which one row and one column are 0, and Winograd's F(4x4, 3x3) 25 products
instead of 36: the point 0 or the one at infinity multiplies by nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastcond.ops.norm_conv.cpu import pack
from fastcond.ops.norm_conv.reference import BLOCK

_PHASES = [(row, column) for row in (0, 1) for column in (0, 1)]


def is_worth_phases(channels: int, features: int, height: int, width: int) -> bool:
    """Whether four convolutions of a map [height, width] beat one of the doubled map, for a batch of one or two already.

    Less arithmetic, but 100 numbers of weight a filter and not 36, which few tiles wait for. On one AVX-512 core, with weights
    that no cache holds, an image of 4 x 4 tiles gained at any batch (1.1 to 1.4 times as fast, 256 and 512 channels); one of
    2 x 2 lost alone (0.6 to 0.9), two were even and eight gained (1.3), so those are for small weights. By the shape alone, as
    a result's bits are.
    """
    tiles = -(-height // 4) * -(-width // 4)
    return channels * features <= 1024 * tiles**2


def pack_upsampled_conv_weight(weight: Tensor) -> Tensor:
    """weight float [K, C, 3, 3] as the kernel's upsampled form multiplies by it.

    Returns: a float32 vector of blocks [4 phases, 25, C, 32 features], the last of them of 16 where no more are left.
    Raises: ValueError for a weight of another shape.
    """
    if weight.dim() != 4 or weight.shape[2:] != (3, 3):
        raise ValueError(f"weight is {list(weight.shape)}; [K, C, 3, 3] is needed")
    channels = weight.shape[1]
    of_phase = []
    for row, column in _PHASES:
        taps = _merged(_merged(weight.double(), row, 2), column, 3).to(weight.dtype)
        needed = [i * 6 + j for i in _points(row) for j in _points(column)]
        blocks = pack(taps).split(36 * channels * BLOCK)
        of_phase.append([block.view(36, -1)[needed].flatten() for block in blocks])
    return torch.cat([phase[i] for i in range(len(of_phase[0])) for phase in of_phase])


def _merged(taps: Tensor, odd: int, dim: int) -> Tensor:
    """The three taps along a dimension as those on the positions before, at and behind an output's own."""
    first, middle, last = taps.split(1, dim)
    zero = torch.zeros_like(first)
    return torch.cat([zero, first + middle, last] if odd else [first, middle + last, zero], dim)


def _points(odd: int) -> range:
    """Of 0, +-a, +-b and infinity, those whose products are not 0."""
    return range(1, 6) if odd else range(5)
