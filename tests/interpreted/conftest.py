"""Tests of the Triton kernels in Triton's interpreter, on the CPU.

TRITON_INTERPRET is read when a kernel is decorated, so they have a process of their own: tests/ops/test_triton_interpreter.py
starts it. Without the variable nothing here is collected.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

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
