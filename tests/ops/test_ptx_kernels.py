"""The compiled Triton kernels, run: what a GPU of each architecture would execute, executed by tests/support/ptx.

T1, whose programs are clusters of CTAs, is not run here.
"""

from __future__ import annotations

import re

import pytest
import torch

pytest.importorskip("triton")

from fastcond.ops.diffusion_step import reference as step_reference
from fastcond.ops.philox import reference as philox_reference
from tests.support import ptx, ptx_launches
from tests.support.ada_group_norm import Case, check_parity
from tests.support.compiled import ARCHITECTURES, Launch, compiling
from tests.support.samplers import seeds_of
from tests.support.triton_ada_group_norm import by_triton, capacity
from tests.support.triton_variants import FORMATS, PHILOX, STEPS, Step
from tests.tolerances import NORMALS

BARRIER = re.compile(r"bar\.sync\s+0;")


def narrowed(case: tuple[object, ...]) -> str:
    return " ".join(str(part) for part in case)


# (shape, groups, dtype, channels_last, elements that a CTA holds, None for as many as it does)
NORMS = [
    ((2, 32, 4, 4), 8, torch.float32, False, None),
    ((2, 32, 4, 4), 8, torch.bfloat16, True, None),
    ((1, 16, 16, 16), 2, torch.float16, False, None),
    ((1, 32, 16, 16), 4, torch.bfloat16, True, None),
    ((2, 24, 8, 8), 2, torch.float32, True, None),
    ((2, 21, 7, 5), 3, torch.float32, False, None),
    ((1, 4, 31, 1), 4, torch.float16, False, None),
    ((3, 98, 1, 1), 1, torch.bfloat16, False, None),
    ((1, 5, 3, 13), 5, torch.float32, True, None),
    ((2, 16, 8, 8), 2, torch.float32, False, 128),
    ((1, 16, 8, 8), 2, torch.bfloat16, True, 256),
    ((2, 6, 5, 7), 2, torch.float16, True, 32),
]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("row", NORMS, ids=narrowed)
def test_ada_group_norm(row: tuple, architecture: int) -> None:
    shape, groups, dtype, channels_last, elements = row
    case = Case(shape, groups, dtype=dtype, channels_last=channels_last)
    with capacity(elements), compiling(architecture, ptx_launches.run) as launches:
        check_parity(case, by_triton)
    two_kernels = "partial_statistics_kernel" in {launch.name for launch in launches}
    assert two_kernels == (elements is not None)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("variant", STEPS, ids=str)
def test_diffusion_step(variant: Step, architecture: int) -> None:
    with compiling(architecture, ptx_launches.run):
        x_next, x_0 = variant.call()
    operands = variant.operands()
    expected_next, expected_0 = torch.full_like(x_next, torch.nan), torch.full_like(x_0, torch.nan)
    step_reference.step_into(*operands, expected_next, expected_0)
    torch.testing.assert_close(x_next, expected_next, **NORMALS)
    torch.testing.assert_close(x_0, expected_0, **NORMALS)
    assert x_next.is_contiguous(memory_format=FORMATS[variant.layout])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_philox(architecture: int) -> None:
    with compiling(architecture, ptx_launches.run):
        (words,), (normals,) = PHILOX["words"](), PHILOX["normals"]()
    row = seeds_of(2), torch.tensor([3])
    assert torch.equal(words, philox_reference.philox_bits(*row, words[0].numel(), 1))
    torch.testing.assert_close(normals, philox_reference.philox_normal(*row, normals.shape[1:], 1), **NORMALS)


# -- planted faults: what the interpreter has to find in these very kernels -----------------------------------------------


# A case of several warps a CTA, and the capacity that makes it one kernel or two.
FAULTY = [(Case((1, 16, 16, 16), 2, dtype=torch.bfloat16), None), (Case((1, 16, 32, 32), 2, dtype=torch.bfloat16), 4096)]


@pytest.mark.parametrize(("case", "elements"), FAULTY, ids=["T0", "T2"])
def test_every_missing_barrier_is_found(case: Case, elements: int | None) -> None:
    found = []

    def check(launch: Launch) -> None:
        text = launch.kernel.asm["ptx"]
        for match in BARRIER.finditer(text):
            with pytest.raises(ptx.Race):
                ptx_launches.run(launch, lambda text, match=match: text[: match.start()] + text[match.end() :])
            found.append(launch.name)
        ptx_launches.run(launch)

    with capacity(elements), compiling(90, check):
        check_parity(case, by_triton)
    reducing = ("forward", "backward") if elements is None else ("partial_statistics", "partial_gradients")
    assert {f"{name}_kernel" for name in reducing} <= set(found)


@pytest.mark.parametrize(("case", "elements"), FAULTY, ids=["T0", "T2"])
def test_every_access_out_of_bounds_is_found(case: Case, elements: int | None) -> None:
    """Each tensor in turn is one element too short."""

    def check(launch: Launch) -> None:
        for name, value in launch.arguments.items():
            if isinstance(value, torch.Tensor):
                short = ptx.memory_of(value)[:-1]
                arguments = [short if other == name else argument for other, argument in launch.arguments.items()]
                with pytest.raises(ptx.OutOfBounds):
                    ptx.launch(launch.kernel, launch.grid, *arguments)
        ptx_launches.run(launch)

    with capacity(elements), compiling(90, check):
        check_parity(case, by_triton)
