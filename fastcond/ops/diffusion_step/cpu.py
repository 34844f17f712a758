"""The native CPU kernel's launchers.

The reference runs where x is in neither memory format, where buffers overlap otherwise than element for element, and where
there is no library.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastcond.ops import native
from fastcond.ops.diffusion_step import reference
from fastcond.ops.diffusion_step.native_call import native_call


def step(x: Tensor, *operands: Any) -> tuple[Tensor, Tensor]:
    """`reference.step`, natively where the kernel takes x."""
    x_next, x_0 = torch.empty_like(x), torch.empty_like(x)
    step_into(x, *operands, x_next, x_0)
    return x_next, x_0


def step_into(x: Tensor, *operands: Any) -> None:
    """`reference.step_into`, natively where the kernel takes x."""
    library, call = native.native, native_call(x, *operands)
    if library is None or call is None or not library.diffusion_step(call.tensors, call.numbers, torch.get_num_threads()):
        reference.step_into(x, *operands)
