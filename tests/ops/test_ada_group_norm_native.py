"""The native ada_group_norm alone: parity on every instruction set; the same bits in any batch and with any threads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from fastcond.ops import ada_group_norm, native
from fastcond.ops.ada_group_norm.op import ada_group_norm_backward, ada_group_norm_forward
from tests.support.ada_group_norm import Case, check_parity, leaf, value_and_gradients
from tests.support.kernels import library_calls  # noqa: F401

if native.native is None:
    pytest.skip("the native library was not built", allow_module_level=True)

SETS = native.native.instruction_sets()
CASES = [
    Case((3, 12, 5, 7), 4),
    Case((2, 98, 3, 3), 1, silu=False),
    Case((4, 32, 16, 16), 8, affine=False),
    Case((2, 7, 1, 1), 7, conditioning="none"),
    Case((5, 66, 13, 3), 2, conditioning="none", affine=False),
    Case((1, 64, 64, 65), 2),
    Case((1, 96, 33, 31), 32),
    Case((2, 64, 72, 64), 32),  # results of more than a large page
]
VARIANTS = [
    replace(case, dtype=dtype, channels_last=last)
    for case in CASES
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for last in (False, True)
]


@pytest.fixture(autouse=True)
def best_instruction_set() -> Iterator[None]:
    yield
    native.native.use_instruction_set(SETS[-1])


def bits(case: Case) -> list[torch.Tensor]:
    """Output and gradients."""
    operands = case.operands()
    return list(value_and_gradients(case.ours(operands), operands, case.upstream()).values())


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("case", VARIANTS, ids=str)
def test_runs_and_thread_counts_give_the_same_bits(name: str, case: Case) -> None:
    native.native.use_instruction_set(name)
    torch.set_num_threads(1)
    alone = bits(case)
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            assert all(torch.equal(a, b) for a, b in zip(alone, bits(case), strict=True)), threads
    finally:
        torch.set_num_threads(2)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("case", VARIANTS, ids=str)
def test_an_image_has_the_same_bits_alone(name: str, case: Case) -> None:
    native.native.use_instruction_set(name)
    operands, dy = case.operands(), case.upstream()
    whole = value_and_gradients(case.ours(operands), operands, dy)
    of_images = ["y", "x"] if case.conditioning == "none" else ["y", "x", "scale", "shift"]
    for image in range(case.shape[0]):
        x, scale, shift, weight, bias = operands
        part = [leaf(None if value is None else value[image : image + 1]) for value in (x, scale, shift)] + [weight, bias]
        alone = value_and_gradients(case.ours(part), part, dy[image : image + 1])
        assert all(torch.equal(alone[of][0], whole[of][image]) for of in of_images), image


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("case", VARIANTS, ids=str)
def test_every_instruction_set_follows_the_parity_rule(name: str, case: Case) -> None:
    native.native.use_instruction_set(name)
    check_parity(case)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_an_image_of_a_batch_too_large_for_caches_has_the_same_bits_alone(name: str, channels_last: bool) -> None:
    native.native.use_instruction_set(name)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x, dy = (torch.randn(34, 64, 64, 62).contiguous(memory_format=memory_format) for _ in range(2))
    assert x.nbytes > 32 << 20

    def y_and_dx(x: torch.Tensor, dy: torch.Tensor) -> list[torch.Tensor]:
        x = x.detach().requires_grad_()
        y = ada_group_norm(x, num_groups=32, activation="silu")
        return [y.detach(), *torch.autograd.grad(y, x, dy)]

    whole = y_and_dx(x, dy)
    for image in (0, 1, 17, 32):
        alone = y_and_dx(x[image : image + 1], dy[image : image + 1])
        assert all(torch.equal(a[0], w[image]) for a, w in zip(alone, whole, strict=True)), image


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_an_image_of_a_strided_batch_has_the_same_bits_alone(memory_format: torch.memory_format) -> None:
    x = torch.randn(4, 8, 4, 4).to(memory_format=memory_format)[::2]
    assert not x.is_contiguous(memory_format=memory_format)
    whole = ada_group_norm(x, num_groups=2, activation="silu")
    for i in range(2):
        assert torch.equal(whole[i : i + 1], ada_group_norm(x[i : i + 1], num_groups=2, activation="silu"))


def test_sizes_are_checked_at_the_op_whoever_calls_it() -> None:
    x, short = torch.randn(2, 6, 4, 4), torch.randn(3)
    with pytest.raises(ValueError, match=r"operand of ada_group_norm is \[3\]; \[6\] is needed"):
        ada_group_norm_forward(x, None, None, short, None, 2, 1e-5, True)
    with pytest.raises(ValueError, match="in 0 groups"):
        ada_group_norm_forward(x, None, None, None, None, 0, 1e-5, True)
    _, mean, rstd = ada_group_norm_forward(x, None, None, None, None, 2, 1e-5, True)
    with pytest.raises(ValueError, match="dy, mean, rstd are"):
        ada_group_norm_backward(x[:1], x, None, None, None, None, mean, rstd, 2, True, [True] * 5)


def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(ValueError, match="instruction set mmx is not there"):
        native.native.use_instruction_set("mmx")


def test_the_native_kernel_is_what_runs(library_calls: list[str]) -> None:  # noqa: F811
    """A fall-back that nobody notices would make every test of this file empty."""
    bits(CASES[0])
    assert library_calls == ["ada_group_norm", "ada_group_norm_backward"]
