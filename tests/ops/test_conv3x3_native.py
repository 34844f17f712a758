"""The native conv3x3 alone: parity on every instruction set; the same bits in any batch, with any threads and in any run."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from fastcond.ops import conv3x3, native, pack_conv_weight
from fastcond.ops.conv3x3 import cpu
from fastcond.ops.norm_conv import reference
from tests.ops.test_conv3x3 import CASES
from tests.support.conv3x3 import Case, check_parity, ours, run
from tests.support.kernels import check_bits, instruction_set, library_calls  # noqa: F401

if native.native is None:
    pytest.skip("the native library was not built", allow_module_level=True)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_instruction_set_follows_the_parity_rule(case: Case, instruction_set: str) -> None:  # noqa: F811
    check_parity(case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_bit_depends_on_threads_or_run_and_of_an_image_none_on_the_batch(
    case: Case,
    instruction_set: str,  # noqa: F811
) -> None:
    case = replace(case, shape=(5, *case.shape[1:]))
    check_bits(partial(run, ours), *case.operands())


@pytest.mark.parametrize("shape", [(40, 24), (16, 16), (17, 33), (1, 5), (64, 3)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_weights_are_packed_as_norm_conv_packs_them(
    shape: tuple[int, int],
    layout: torch.memory_format,
    instruction_set: str,  # noqa: F811
) -> None:
    """The same bits, whichever way the weight lies; turned, those of a weight that was turned beforehand."""
    weight = torch.randn(*shape, 3, 3)
    torch.testing.assert_close(cpu._pack(weight, False), reference.pack(weight), atol=0.0, rtol=2e-7)
    lying = weight.contiguous(memory_format=layout)
    assert torch.equal(cpu._pack(lying, False), pack_conv_weight(weight))
    assert torch.equal(cpu._pack(lying, True), pack_conv_weight(weight.flip(2, 3).transpose(0, 1)))


def test_the_native_kernels_are_what_runs(library_calls: list[str]) -> None:  # noqa: F811
    """A fall-back that nobody notices would make every test of this file empty."""
    x, weight, bias, dy = Case((2, 16, 6, 6), 16).operands()
    run(conv3x3, x, weight, bias, dy)
    assert library_calls == ["pack_filters", "norm_conv", "pack_filters", "norm_conv", "conv_weight_gradient"]
