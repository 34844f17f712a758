"""Registration: one schema an op, Triton for GPUs, C++ for the CPU where it was built, the reference elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastcond.ops import gpu, native
from fastcond.ops.philox import reference

torch.library.define(
    "fastcond::philox_bits",
    "(Tensor seeds, Tensor step, SymInt count, int stream) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.define(
    "fastcond::philox_normal",
    "(Tensor seeds, Tensor step, SymInt[] shape, int stream) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.impl("fastcond::philox_bits", "default", reference.philox_bits)
torch.library.impl("fastcond::philox_normal", "default", reference.philox_normal)


def _check_values(seeds: Tensor, step: Tensor) -> None:
    """On the CPU the values can be read; elsewhere that would wait for the device, and the low 32 bits are used.

    Kinds and sizes too, since the kernel reads addresses, whoever calls the op.
    """
    if seeds.dtype != torch.int64 or seeds.dim() != 2 or seeds.shape[1] != 2 or step.dtype != torch.int64 or step.numel() != 1:
        raise ValueError(f"seeds, step: need int64 [B, 2] and one int64, found {seeds.dtype} {list(seeds.shape)}, {step.dtype}")
    if seeds.numel():
        low, high = (int(bound) for bound in torch.aminmax(seeds))
        if low < 0 or high >> 32:
            raise ValueError(f"seeds: run seeds and image indices lie in [0, 2**32), found {low if low < 0 else high}")
    if int(step) < 0 or int(step) >> 32:
        raise ValueError(f"step: lies in [0, 2**32), found {int(step)}")


@torch.library.impl("fastcond::philox_bits", "cpu")
def _philox_bits_cpu(seeds: Tensor, step: Tensor, count: int, stream: int) -> Tensor:
    _check_values(seeds, step)
    library = native.native
    if library is None:
        return reference.philox_bits(seeds, step, count, stream)
    seeds, batch = seeds.contiguous(), seeds.shape[0]
    out = torch.empty((batch, count), dtype=torch.int64)
    library.philox_bits(seeds.data_ptr(), int(step), out.data_ptr(), batch, count, stream, torch.get_num_threads())
    return out


@torch.library.impl("fastcond::philox_normal", "cpu")
def _philox_normal_cpu(seeds: Tensor, step: Tensor, shape: Sequence[int], stream: int) -> Tensor:
    _check_values(seeds, step)
    library = native.native
    if library is None:
        return reference.philox_normal(seeds, step, shape, stream)
    seeds, batch, count = seeds.contiguous(), seeds.shape[0], math.prod(shape)
    out = torch.empty((batch, *shape), dtype=torch.float32)
    library.philox_normal(seeds.data_ptr(), int(step), out.data_ptr(), batch, count, stream, torch.get_num_threads())
    return out


def _for_gpu() -> Any:
    return gpu.launchers("fastcond.ops.philox.triton_kernels") or reference


@torch.library.impl("fastcond::philox_bits", "cuda")
def _philox_bits_cuda(seeds: Tensor, step: Tensor, count: int, stream: int) -> Tensor:
    with torch.cuda.device(seeds.device):
        return _for_gpu().philox_bits(seeds, step, count, stream)


@torch.library.impl("fastcond::philox_normal", "cuda")
def _philox_normal_cuda(seeds: Tensor, step: Tensor, shape: Sequence[int], stream: int) -> Tensor:
    with torch.cuda.device(seeds.device):
        return _for_gpu().philox_normal(seeds, step, shape, stream)


@torch.library.register_fake("fastcond::philox_bits")
def _philox_bits_fake(seeds: Tensor, step: Tensor, count: int, stream: int) -> Tensor:
    return seeds.new_empty((seeds.shape[0], count))


@torch.library.register_fake("fastcond::philox_normal")
def _philox_normal_fake(seeds: Tensor, step: Tensor, shape: Sequence[int], stream: int) -> Tensor:
    return seeds.new_empty((seeds.shape[0], *shape), dtype=torch.float32)


# Bound once: looking the overload up at every call costs as much as the call.
philox_bits_op = torch.ops.fastcond.philox_bits.default
philox_normal_op = torch.ops.fastcond.philox_normal.default
