"""philox's Triton kernel, interpreted: the op's own tests, the reference's words over ten million, and its normals."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import fastcond.ops.philox as public
from fastcond.ops.philox import STEP_NOISE, op, reference, triton_kernels
from tests.ops.test_philox import (  # noqa: F401
    LARGEST,
    seeds_of,
    test_distribution_is_normal,
    test_elements_count_in_logical_order,
    test_every_part_of_the_key_matters,
    test_step_as_tensor_equals_step_as_int,
    test_strided_seeds,
    test_words_are_where_the_design_puts_them,
)
from tests.support.kernels import needs_native
from tests.tolerances import NORMALS


@pytest.fixture(autouse=True, scope="module")
def kernel() -> Iterator[str]:
    """The public functions call the Triton launchers. The name is that of the fixture which the op's tests ask for."""
    with pytest.MonkeyPatch.context() as patch:
        # Programs of many elements: each costs the interpreter about the same time. What is drawn does not depend on it.
        patch.setattr(triton_kernels, "_BLOCK", 1 << 14)
        patch.setattr(public, "philox_bits_op", triton_kernels.philox_bits)
        patch.setattr(public, "philox_normal_op", triton_kernels.philox_normal)
        yield "triton"


@pytest.mark.parametrize(("images", "count"), [(1, 5_000_000), (64, 80_003), (500, 1), (3, 0), (0, 5)])
def test_words_equal_the_reference_and_the_cpu_kernel(images: int, count: int) -> None:
    seeds, step = seeds_of(images, run_seed=LARGEST), torch.tensor([12345])
    words = triton_kernels.philox_bits(seeds, step, count, STEP_NOISE)
    assert torch.equal(words, reference.philox_bits(seeds, step, count, STEP_NOISE))
    assert torch.equal(words, op.philox_bits_op(seeds, step, count, STEP_NOISE))


def test_the_size_of_a_program_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (seeds_of(3), torch.tensor([2]), (5_003,), STEP_NOISE)
    drawn = []
    for block in (64, 512, 1 << 14):
        monkeypatch.setattr(triton_kernels, "_BLOCK", block)
        drawn.append(triton_kernels.philox_normal(*arguments))
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(("images", "shape"), [(1, (1 << 20,)), (5, (3, 7, 11)), (2, ()), (3, (0, 4))])
def test_normals_are_close_to_the_reference(images: int, shape: tuple[int, ...]) -> None:
    seeds, step = seeds_of(images), torch.tensor([2])
    normals = triton_kernels.philox_normal(seeds, step, shape, STEP_NOISE)
    torch.testing.assert_close(normals, reference.philox_normal(seeds, step, shape, STEP_NOISE), **NORMALS)


@needs_native
def test_normals_have_the_bits_of_the_native_kernel() -> None:
    seeds, step = seeds_of(3), torch.tensor([7])
    assert torch.equal(
        triton_kernels.philox_normal(seeds, step, (400_003,), STEP_NOISE),
        op.philox_normal_op(seeds, step, (400_003,), STEP_NOISE),
    )
