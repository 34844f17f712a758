"""The Triton kernels on a GPU, where there is one: parity, the same bits in any batch and from run to run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from fastcond.ops import ada_group_norm
from tests.interpreted.test_ada_group_norm import random_case
from tests.support.ada_group_norm import Case, check_parity, value_and_gradients
from tests.support.triton_variants import DTYPES, FORMATS, STEPS, Step
from tests.tolerances import NORMALS

pytestmark = pytest.mark.gpu
SIZES = [(128, 32, 4), (256, 32, 16), (128, 32, 32), (96, 8, 16), (1344, 32, 8), (192, 32, 64), (128, 32, 128)]


@pytest.mark.parametrize("first", range(0, 500, 50))
def test_random_cases_follow_the_parity_rule(first: int) -> None:
    for seed in range(first, first + 50):
        check_parity(replace(random_case(seed)[0], device="cuda"))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", FORMATS)
def test_every_tier_follows_the_parity_rule(size: tuple[int, int, int], dtype: str, layout: str) -> None:
    channels, groups, side = size
    shape = (3, channels, side, side)
    check_parity(Case(shape, groups, dtype=DTYPES[dtype], channels_last=layout == "channels_last", device="cuda"))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("layout", FORMATS)
def test_an_image_has_the_same_bits_in_any_batch_and_any_run(size: tuple[int, int, int], layout: str) -> None:
    channels, groups, side = size
    case = Case((5, channels, side, side), groups, channels_last=layout == "channels_last", device="cuda")
    operands = case.operands()
    x, scale, shift, weight, bias = operands
    whole = value_and_gradients(case.ours(operands), operands, case.upstream())
    again = value_and_gradients(case.ours(operands), operands, case.upstream())
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    for i in range(5):
        one = slice(i, i + 1)
        y = ada_group_norm(x[one], scale[one], shift[one], groups, weight=weight, bias=bias, activation="silu")
        assert torch.equal(y, whole["y"][one])


@pytest.mark.parametrize("variant", STEPS, ids=str)
def test_steps_agree_with_the_cpu(variant: Step) -> None:
    on_gpu = [value.cuda() if isinstance(value, torch.Tensor) else value for value in variant.operands()]
    expected = torch.ops.fastcond.diffusion_step(*variant.operands())
    for value, truth in zip(torch.ops.fastcond.diffusion_step(*on_gpu), expected, strict=True):
        torch.testing.assert_close(value.cpu(), truth, **NORMALS)
