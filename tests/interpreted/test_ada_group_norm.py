"""ada_group_norm's Triton kernels, interpreted: the parity rule over random cases, the same bits in any batch, pathologies."""

from __future__ import annotations

import random
from contextlib import AbstractContextManager
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fastcond.ops.ada_group_norm import triton_launch
from fastcond.ops.ada_group_norm.plan import Plan, make_plan
from tests.support.ada_group_norm import Case, check_parity, exactly, value_and_gradients
from tests.support.triton_ada_group_norm import by_triton, capacity

CASES = 2000
CASES_A_TEST = 50
MOST_ELEMENTS = 2048
MOST_PROGRAMS = 16

WIDTHS = (1, 2, 3, 4, 7, 8, 12, 16, 98)
GROUPS = (1, 2, 3, 4, 8)
MAPS = ((), (1,), (11,), (1, 1), (1, 7), (2, 2), (4, 4), (3, 13), (5, 7), (8, 8), (2, 3, 5), (16, 16))
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CAPACITIES = (None, None, 32, 128, 512)


@dataclass(frozen=True)
class Gpu:
    """What a case is planned for: elements that a CTA holds (None: as GPUs do), and whether there are clusters of CTAs."""

    elements: int | None
    clusters: bool

    def planned(self) -> AbstractContextManager[None]:
        return capacity(self.elements, clusters=self.clusters)


def plan_of(case: Case, gpu: Gpu, backward: bool) -> Plan:
    positions = torch.Size(case.shape[2:]).numel()
    last = case.channels_last and len(case.shape) == 4 and positions > 1 and case.shape[1] > 1
    with gpu.planned():
        plan = make_plan(case.shape[1], case.num_groups, positions, case.dtype.itemsize, last, gpu.clusters, backward)
    assert plan is not None
    return plan


def programs(case: Case, gpu: Gpu) -> int:
    """Of all launches: what a case costs the interpreter."""
    plans = [plan_of(case, gpu, backward) for backward in (False, True)]
    return sum(case.shape[0] * case.num_groups // plan.groups * (plan.tiles + plan.splits) for plan in plans)


def random_case(seed: int) -> tuple[Case, Gpu]:
    """A case, and the GPU that it is planned for."""
    draw = random.Random(seed)
    while True:
        groups, positions = draw.choice(GROUPS), draw.choice(MAPS)
        case = Case(
            (draw.choice((1, 2, 3)), groups * draw.choice(WIDTHS), *positions),
            groups,
            dtype=draw.choice(DTYPES),
            channels_last=draw.random() < 0.5,
            conditioning=draw.choice(("none", "chunk", "chunk", "row", "map")),
            affine=draw.random() < 0.5,
            silu=draw.random() < 0.7,
        )
        gpu = Gpu(draw.choice(CAPACITIES), clusters=draw.random() < 0.3)
        if torch.Size(case.shape).numel() <= MOST_ELEMENTS and programs(case, gpu) <= MOST_PROGRAMS:
            return case, gpu


@pytest.mark.parametrize("first", range(0, CASES, CASES_A_TEST))
def test_random_cases_follow_the_parity_rule(first: int) -> None:
    for seed in range(first, first + CASES_A_TEST):
        case, gpu = random_case(seed)
        with gpu.planned():
            check_parity(case, by_triton)


def test_random_cases_reach_every_tier_layout_and_dtype() -> None:
    seen = set()
    for seed in range(CASES):
        case, gpu = random_case(seed)
        last = case.channels_last and len(case.shape) == 4
        for backward in (False, True):
            plan = plan_of(case, gpu, backward)
            seen.add((plan.tier, plan.groups > 4, plan.splits > 1, last, case.dtype))
    tiers = [("T0", True, False), ("T0", False, False), ("T1", False, False), ("T2", False, True)]
    assert {(*tier, last, dtype) for tier in tiers for last in (False, True) for dtype in DTYPES} <= seen
    assert {("T2", True, True, True, dtype) for dtype in DTYPES} <= seen


BATCHED = [
    (Case((3, 12, 5, 7), 4), Gpu(None, False)),
    (Case((3, 24, 4, 4), 6, channels_last=True), Gpu(None, False)),
    (Case((3, 16, 8, 8), 2, dtype=torch.bfloat16, channels_last=True), Gpu(64, False)),
    (Case((3, 8, 8, 8), 2, channels_last=True), Gpu(64, True)),
    (Case((3, 14, 3, 3), 2, dtype=torch.float16), Gpu(32, False)),
]


@pytest.mark.parametrize(("case", "gpu"), BATCHED, ids=str)
def test_an_image_has_the_same_bits_in_any_batch(case: Case, gpu: Gpu) -> None:
    x, scale, shift, weight, bias = (None if value is None else value.detach() for value in case.operands())
    dy = case.upstream()
    with gpu.planned():
        rest = (case.num_groups, case.eps, case.silu)
        y, mean, rstd = triton_launch.forward(x, scale, shift, weight, bias, *rest)
        needed = [True] * 5
        grads = triton_launch.backward(dy, x, scale, shift, weight, bias, mean, rstd, case.num_groups, case.silu, needed)
        for i in range(len(x)):
            one = slice(i, i + 1)
            operands = (x[one], scale[one], shift[one], weight, bias)
            y_one, mean_one, rstd_one = triton_launch.forward(*operands, *rest)
            assert torch.equal(y_one, y[one]) and torch.equal(mean_one, mean[:, one]) and torch.equal(rstd_one, rstd[one])
            of_one = triton_launch.backward(dy[one], *operands, mean_one, rstd_one, case.num_groups, case.silu, needed)
            for alone, batched in zip(of_one[:3], grads[:3], strict=True):
                assert torch.equal(alone, batched[one])


@pytest.mark.parametrize("elements", [None, 64])
def test_bfloat16_gradients_lose_their_own_rounding_and_nothing_else(elements: int | None) -> None:
    case = Case((2, 32, 8, 8), 8, dtype=torch.bfloat16)
    operands, dy = case.operands(), case.upstream()
    with capacity(elements):
        dx = value_and_gradients(by_triton(case, operands), operands, dy)["x"].double()
    exact = [exactly(operand) for operand in operands]
    expected = value_and_gradients(case.truth(exact), exact, dy.double())["x"]

    def loss(value: Tensor) -> float:
        return float((value - expected).square().mean().sqrt())

    assert loss(dx) <= 1.05 * loss(expected.to(torch.bfloat16).double())


@pytest.mark.parametrize("elements", [None, 32])
@pytest.mark.parametrize("channels_last", [False, True])
class TestPathologies:
    def test_large_means_cost_no_digits(self, channels_last: bool, elements: int | None) -> None:
        x = 10_000 + 0.1 * (2 * torch.rand(2, 8, 5, 5, generator=torch.Generator().manual_seed(0)) - 1)
        case = Case(tuple(x.shape), 2, affine=False, conditioning="none", silu=False, channels_last=channels_last)
        x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
        operands, dy = [x.requires_grad_(), None, None, None, None], case.upstream()
        with capacity(elements):
            ours = value_and_gradients(by_triton(case, operands), operands, dy)
        exact = [exactly(operand) for operand in operands]
        expected = value_and_gradients(case.truth(exact), exact, dy.double())
        # x itself is known exactly; its distances to the mean are of size 0.1 and lose a few roundings of their own.
        for name, value in ours.items():
            assert float((value - expected[name]).abs().max() / expected[name].abs().max()) < 2e-6, name

    def test_constant_groups_give_the_offset_exactly(self, channels_last: bool, elements: int | None) -> None:
        case = Case((2, 12, 3, 5), 4, silu=False, channels_last=channels_last)
        x, scale, shift, weight, bias = (value.detach() for value in case.operands())
        x = torch.full_like(x, 123.456)
        with capacity(elements):
            y = triton_launch.forward(x, scale, shift, weight, bias, 4, 1e-5, False)[0]
        offset = bias * (1 + scale) + shift
        assert torch.equal(y, offset[:, :, None, None].expand_as(y))

    def test_denormal_values(self, channels_last: bool, elements: int | None) -> None:
        case = Case((1, 8, 4, 4), 2, affine=False, conditioning="none", channels_last=channels_last)
        x = case.operands()[0].detach() * 1e-40
        with capacity(elements):
            y = triton_launch.forward(x, None, None, None, None, 2, 1e-5, True)[0]
        assert y.isfinite().all() and y.abs().max() < 1e-30

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    def test_what_is_not_finite_stays_in_its_group(self, channels_last: bool, elements: int | None, bad: float) -> None:
        case = Case((2, 8, 3, 3), 4, affine=False, conditioning="none", channels_last=channels_last)
        x = case.operands()[0].detach()
        for position in (0, 4):  # the first element of a group is its pivot
            broken = x.clone(memory_format=torch.preserve_format)
            broken[0, 2, position // 3, position % 3] = bad
            with capacity(elements):
                y, mean, rstd = triton_launch.forward(broken, None, None, None, None, 4, 1e-5, True)
                dx = triton_launch.backward(
                    torch.ones_like(x), broken, None, None, None, None, mean, rstd, 4, True, [True] + [False] * 4
                )[0]
            expected = torch.nn.functional.silu(torch.nn.functional.group_norm(broken, 4))
            for value in (y, dx):
                assert torch.equal(value.isnan(), expected.isnan())
