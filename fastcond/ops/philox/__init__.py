"""Noise is a function: Philox4x32-10 of (run seed, image index, step, stream, element), with no generator state.

The same image gets the same noise at any batch size, layout, device, shard or replay. `reference.py` has the maths.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastcond.ops.philox.op import philox_bits_op, philox_normal_op

INITIAL_NOISE = 0  # x_T of sampling
STEP_NOISE = 1  # the noise that a sampler adds at a step
TRAINING_NOISE = 2  # the eps of a training batch
TRAINING_DRAWS = 3  # a training batch's scalar draws: timestep, label dropout, flip
DATA_ORDER = 4  # the order in which a dataset is visited

__all__ = [
    "DATA_ORDER",
    "INITIAL_NOISE",
    "STEP_NOISE",
    "TRAINING_DRAWS",
    "TRAINING_NOISE",
    "philox_bits",
    "philox_normal",
]


def philox_bits(seeds: Tensor, count: int, *, step: int | Tensor = 0, stream: int = INITIAL_NOISE) -> Tensor:
    """Draw uniformly distributed 32-bit words: word e of an image is lane e % 4 of counter (e // 4, 0, step, stream).

    Args:
        seeds: int64 [B, 2], (run seed, image index), both in [0, 2**32).
        count: words an image, at least 0; fewer words are a prefix of more.
        step: which step draws, in [0, 2**32); an int, or an int64 tensor of one element on seeds' device, which is
            read there and never brought to the host.
        stream: what the words are for, one of the constants of this module, in [0, 2**32).
    Returns: int64 [B, count], contiguous, values in [0, 2**32), the same bits on every device.
    Raises: ValueError for an argument that does not fit, naming it and what was found. Values inside a tensor are
        checked on the CPU only; elsewhere their low 32 bits are used.
    Source: Salmon et al. 2011, section 3.3 (Philox4x32-10).
    """
    if count < 0:
        raise ValueError(f"count: must not be negative, found {count}")
    return philox_bits_op(seeds, _check(seeds, step, stream), count, stream)


def philox_normal(seeds: Tensor, shape: Sequence[int], *, step: int | Tensor = 0, stream: int = INITIAL_NOISE) -> Tensor:
    """Draw standard normals: Box-Muller on the words of `philox_bits`, one an element of `shape` in logical order.

    Args:
        seeds: int64 [B, 2], (run seed, image index), both in [0, 2**32).
        shape: the shape of one image, such as (C, H, W).
        step: which step draws, in [0, 2**32); an int, or an int64 tensor of one element on seeds' device, which is
            read there and never brought to the host.
        stream: what the noise is for, one of the constants of this module, in [0, 2**32).
    Returns: float32 [B, *shape], contiguous. |z| is at most sqrt(66 ln 2) = 6.76.
    Raises: ValueError for an argument that does not fit, naming it and what was found. Values inside a tensor are
        checked on the CPU only; elsewhere their low 32 bits are used.
    Source: Salmon et al. 2011, section 3.3 (Philox4x32-10); Box & Muller 1958.
    """
    if any(extent < 0 for extent in shape):
        raise ValueError(f"shape: extents must not be negative, found {tuple(shape)}")
    return philox_normal_op(seeds, _check(seeds, step, stream), shape, stream)


def _check(seeds: Tensor, step: int | Tensor, stream: int) -> Tensor:
    """Validate what the two functions share, and return the step as a tensor on seeds' device."""
    if seeds.dtype != torch.int64 or seeds.dim() != 2 or seeds.shape[1] != 2:
        raise ValueError(f"seeds: needs int64 [B, 2], found {seeds.dtype} {list(seeds.shape)}")
    if stream < 0 or stream >> 32:
        raise ValueError(f"stream: lies in [0, 2**32), found {stream}")
    if isinstance(step, Tensor):
        if step.dtype != torch.int64 or step.numel() != 1 or step.device != seeds.device:
            found = f"{step.dtype} {list(step.shape)} on {step.device}"
            raise ValueError(f"step: needs an int, or int64 with one element on {seeds.device}, found {found}")
        return step
    if step < 0 or step >> 32:
        raise ValueError(f"step: lies in [0, 2**32), found {step}")
    return seeds.new_full((1,), step)
