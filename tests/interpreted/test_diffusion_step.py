"""diffusion_step's Triton kernel, interpreted: the op's own tests (formula, diffusers, aliasing), and the reference's bits."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch

from fastcond.ops.diffusion_step import reference, triton_kernels
from fastcond.ops.philox import STEP_NOISE, philox_normal
from tests.ops import test_diffusion_step as of_op
from tests.ops.test_diffusion_step import (  # noqa: F401
    test_a_row_is_its_formula,
    test_arguments_are_left_as_they_were,
    test_fifty_steps_of_ddim_follow_diffusers,
    test_fifty_steps_of_ddpm_follow_diffusers,
    test_guidance_may_differ_from_image_to_image,
    test_noise_depends_on_seed_image_and_row_only,
    test_the_last_row_adds_no_noise,
    test_without_out_uncond_guidance_is_not_read,
    test_writing_form_equals_the_functional_one_though_buffers_alias,
)
from tests.support.samplers import seeds_of
from tests.tolerances import NORMALS


@pytest.fixture(autouse=True, scope="module")
def behind_the_op() -> Iterator[None]:
    """The public function calls the Triton launchers."""
    public = sys.modules["fastcond.ops.diffusion_step"]  # as an attribute of the package, the name is the function's
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(public, "diffusion_step_functional", triton_kernels.step)
        patch.setattr(public, "diffusion_step_into", triton_kernels.step_into)
        yield


@pytest.mark.parametrize("shape", [(3, 2, 5, 4), (2, 3, 16, 24), (1, 1, 1, 1), (2, 3, 7, 7)])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_without_noise_a_step_has_the_bits_of_the_reference(
    shape: tuple[int, ...], channels_last: bool, guided: bool, dtype: torch.dtype
) -> None:
    drawn = of_op.inputs(shape, channels_last=channels_last, dtype=dtype)
    drawn["x"][0, 0, 0, 0] = torch.nan
    table, batch = of_op.full_table(), shape[0]
    guidance = torch.linspace(-1, 3, batch) if guided else None
    uncond = drawn["out_uncond"] if guided else None
    for row in range(of_op.ROWS):
        operands = (drawn["x"], drawn["out_cond"], uncond, drawn["history"], table.coefficients, torch.tensor([row]), guidance)
        ours = triton_kernels.step(*operands, seeds_of(batch), False)
        theirs = reference.step(*operands, seeds_of(batch), False)
        for value, expected in zip(ours, theirs, strict=True):
            assert torch.equal(value.nan_to_num(nan=1e30), expected.nan_to_num(nan=1e30))
            assert value.stride() == drawn["x"].stride()


def test_its_noise_is_philox_normal() -> None:
    """Counted in logical order in both layouts, over images that are no multiple of a counter's four elements."""
    for shape in ((3, 2, 5, 4), (2, 3, 7, 7), (2, 3, 32, 16)):
        coefficients = torch.zeros(2, 8)
        coefficients[:, 7] = 1.0
        for memory_format in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(shape).to(memory_format=memory_format)
            operands = (x, x, None, None, coefficients, torch.tensor([1]), None, seeds_of(shape[0]), True)
            z = philox_normal(seeds_of(shape[0]), shape[1:], step=1, stream=STEP_NOISE)
            torch.testing.assert_close(triton_kernels.step(*operands)[0], z, **NORMALS)
