"""Matrices in the form that the CPU kernels' products read (kernels/cpu/products.h)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 32  # features of a block
LEAST = 16  # of the last block, where no more are left


def pack_matrix(weight: Tensor) -> Tensor:
    """weight [K, depth] as a float32 vector of blocks [depth, 32 features].

    The last block is of 16 features where no more are left; features that are not there are 0.
    """
    blocks = []
    for block in weight.float().split(BLOCK):
        width = BLOCK if block.shape[0] > LEAST else LEAST
        blocks.append(F.pad(block, (0, 0, 0, width - block.shape[0])).T.flatten())
    return torch.cat(blocks)


def padded(features: int) -> int:
    """Features that a packed matrix has for `features`."""
    return -(-features // LEAST) * LEAST
