"""How x lies in memory, for the kernels: contiguous, channels_last, or made so."""

from __future__ import annotations

import torch
from torch import Tensor


def channels_last(x: Tensor) -> bool | None:
    """Whether x [B, C, *] is channels_last; False where it is contiguous, None where it is neither."""
    if x.is_contiguous():
        return False
    return True if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) else None


def dense(x: Tensor) -> Tensor:
    """x in the layout that its images have by themselves, so that an image has the same bits in any batch."""
    last = x.dim() == 4 and x.shape[1] > 1 and x.stride(1) == 1
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
