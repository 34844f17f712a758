"""The native small_attention alone: parity on every instruction set; the same bits in any batch and with any threads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastcond.ops import native
from fastcond.ops.norm_conv import ChannelNorm
from fastcond.ops.small_attention import small_attention
from tests.ops.test_small_attention import CASES
from tests.support.kernels import instruction_set, library_calls  # noqa: F401
from tests.support.small_attention import Case, check_parity

if native.native is None:
    pytest.skip("the native library was not built", allow_module_level=True)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_instruction_set_follows_the_parity_rule(case: Case, instruction_set: str) -> None:  # noqa: F811
    check_parity(case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_image_has_the_same_bits_in_any_batch_and_with_any_threads(case: Case, instruction_set: str) -> None:  # noqa: F811
    operands = replace(case, shape=(5, *case.shape[1:])).operands()
    torch.set_num_threads(1)
    try:
        y = small_attention(**operands)
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for images in (slice(0, 5), slice(0, 1), slice(2, 4)):
                part = dict(operands, x=operands["x"][images])
                part["residual"] = None if part["residual"] is None else part["residual"][images]
                part["norm"] = None if part["norm"] is None else ChannelNorm(*(value[images] for value in part["norm"]))
                assert torch.equal(small_attention(**part), y[images]), (threads, images)
    finally:
        torch.set_num_threads(2)


def test_the_native_kernel_is_what_runs(library_calls: list[str]) -> None:  # noqa: F811
    """A fall-back that nobody notices would make every test of this file empty."""
    small_attention(torch.randn(1, 4, 4, 4), torch.randn(12, 4), torch.randn(4, 4), 2)
    assert library_calls == ["small_attention"]
