"""The native linear alone: parity on every instruction set; the same bits in any batch, with any threads and in any run."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from fastcond.ops import linear, native
from fastcond.ops.linear import cpu
from fastcond.ops.packing import pack_matrix
from tests.support.kernels import check_bits, instruction_set, library_calls  # noqa: F401
from tests.support.linear import NATIVE_CASES, Case, check_parity, run
from tests.support.linear import native as by_op

if native.native is None:
    pytest.skip("the native library was not built", allow_module_level=True)


@pytest.mark.parametrize("case", NATIVE_CASES, ids=str)
def test_every_instruction_set_follows_the_parity_rule(case: Case, instruction_set: str) -> None:  # noqa: F811
    check_parity(case, by_op)


@pytest.mark.parametrize("case", [case for case in NATIVE_CASES if case.shape[2] % 16 == 0], ids=str)
def test_no_bit_depends_on_threads_or_run_and_of_an_image_none_on_the_batch(
    case: Case,
    instruction_set: str,  # noqa: F811
) -> None:
    case = replace(case, shape=(5, *case.shape[1:]))
    check_bits(partial(run, by_op), *case.operands())


@pytest.mark.parametrize("shape", [(40, 24), (16, 16), (17, 33), (1, 5), (64, 3), (50, 100)])
def test_weights_are_packed_as_the_products_read_them(shape: tuple[int, int], instruction_set: str) -> None:  # noqa: F811
    """Whichever way a weight lies, and turned."""
    weight = torch.randn(shape)
    for lying in (weight, weight.t().contiguous().t(), torch.stack((weight, weight), dim=2)[:, :, 0]):
        assert torch.equal(cpu.pack(lying, turned=False), pack_matrix(weight))
        assert torch.equal(cpu.pack(lying, turned=True), pack_matrix(weight.t()))


def test_the_native_kernels_are_what_runs(library_calls: list[str]) -> None:  # noqa: F811
    """A fall-back that nobody notices would make every test of this file empty."""
    run(linear, *Case((2, 64, 64), 64).operands())
    assert library_calls == ["pack_matrix", "linear", "pack_matrix", "linear", "linear_gradient"]
