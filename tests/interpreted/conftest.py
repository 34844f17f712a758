"""Tests of the Triton kernels in Triton's interpreter, on the CPU.

TRITON_INTERPRET is read when a kernel is decorated, so they have a process of their own: tests/ops/test_triton_interpreter.py
starts it. Without the variable nothing here is collected.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]


@pytest.fixture(autouse=True, scope="module")
def poisoned_memory() -> Iterator[None]:
    """torch.empty gives NaN (the largest integer), so that an element which a kernel leaves unwritten shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True, scope="module")
def bfloat16_that_rounds() -> Iterator[None]:
    """Conversions to and from bfloat16 by PyTorch: Triton's interpreter cuts bits off where a GPU rounds to nearest."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, tl

    convert = InterpreterBuilder.cast_impl

    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        kinds = (src.dtype.scalar, dst_type.scalar)
        if kinds == (tl.float32, tl.bfloat16):
            rounded = torch.from_numpy(np.atleast_1d(src.data)).to(torch.bfloat16).view(torch.int16).numpy()
            return TensorHandle(rounded.view(np.uint16).reshape(src.data.shape), tl.bfloat16)
        if kinds == (tl.bfloat16, tl.float32):
            return TensorHandle((src.data.astype(np.uint32) << 16).view(np.float32), tl.float32)
        return convert(self, src, dst_type)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpreterBuilder, "cast_impl", cast_impl)
        yield
