"""The native norm_conv alone: parity on every instruction set; the same bits in any batch and with any threads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fastcond.ops import native
from fastcond.ops.norm_conv import ChannelNorm, norm_conv, norm_conv_with_statistics
from tests.ops.test_norm_conv import CASES
from tests.support.kernels import instruction_set, library_calls  # noqa: F401
from tests.support.norm_conv import Case, check_parity

if native.native is None:
    pytest.skip("the native library was not built", allow_module_level=True)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_instruction_set_follows_the_parity_rule(case: Case, instruction_set: str) -> None:  # noqa: F811
    check_parity(case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_image_has_the_same_bits_in_any_batch_and_with_any_threads(case: Case, instruction_set: str) -> None:  # noqa: F811
    case = replace(case, shape=(5, *case.shape[1:]))
    operands = case.operands()
    torch.set_num_threads(1)
    try:
        y, statistics = norm_conv_with_statistics(**operands)
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for images in (slice(0, 5), slice(0, 1), slice(2, 4)):
                again, of_part = norm_conv_with_statistics(**part_of(operands, images))
                assert torch.equal(again, y[images]), (threads, images)
                assert all(torch.equal(a, b[images]) for a, b in zip(of_part, statistics, strict=True))
    finally:
        torch.set_num_threads(2)


def part_of(operands: dict[str, Any], images: slice) -> dict[str, Any]:
    """The same call for some images of the batch."""
    part = dict(operands)
    for name in ("x", "residual"):
        part[name] = None if part[name] is None else part[name][images]
    if part["norm"] is not None:
        part["norm"] = ChannelNorm(*(value[images] for value in part["norm"]))
    if part["bias"] is not None and part["bias"].dim() == 2:
        part["bias"] = part["bias"][images]
    return part


def test_the_native_kernel_is_what_runs(library_calls: list[str]) -> None:  # noqa: F811
    """A fall-back that nobody notices would make every test of this file empty."""
    norm_conv(torch.randn(1, 4, 4, 4), torch.randn(4, 4, 3, 3))
    assert library_calls == ["pack_conv_weight", "norm_conv"]
