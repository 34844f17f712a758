"""The native CUDA kernel's launcher, for a GPU without Triton.

Compiled and inspected for sm_80, 90, 100 and 120 (tests/ops/test_diffusion_step_cuda.py); it has never run on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastcond.ops import native
from fastcond.ops.diffusion_step import reference
from fastcond.ops.diffusion_step.native_call import native_call


def is_built() -> bool:
    """Whether the library was built with -DFASTCOND_CUDA=ON."""
    return hasattr(native.native, "diffusion_step_cuda")


def step(x: Tensor, *operands: Any) -> tuple[Tensor, Tensor]:
    """`reference.step`, natively where the kernel takes x."""
    x_next, x_0 = torch.empty_like(x), torch.empty_like(x)
    step_into(x, *operands, x_next, x_0)
    return x_next, x_0


def step_into(x: Tensor, *operands: Any) -> None:
    """`reference.step_into`, natively where the kernel takes x. Nothing is read back to the host."""
    library, call = native.native, native_call(x, *operands)
    if library is not None and call is not None and is_built():
        if any(value is not None and value.device != x.device for value in call.kept):
            raise ValueError(f"diffusion_step: all tensors must be on x's device, {x.device}")
        # The current device's stream would be another one than x's, were x on another GPU.
        with torch.cuda.device(x.device):
            if library.diffusion_step_cuda(call.tensors, call.numbers, torch.cuda.current_stream().cuda_stream):
                return
    reference.step_into(x, *operands)
