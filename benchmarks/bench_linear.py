"""linear on the tokens of small U-Nets in training: the output alone, and with all three gradients.

*eager* is F.linear and its autograd, and so is *reference*. Bytes that cannot be saved: forward x and the weight in, y out; with
the backward x, dy and the weight in again, dx and the weight's gradient out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks.measuring import DEVICE, copy, measure, size_name
from fastcond.ops import linear
from tests.support.linear import Case, check_parity

# (x [B, tokens, C], K)
SHAPES = [((32, 64, 128), 128), ((8, 256, 256), 256), ((64, 16, 64), 64), ((1, 64, 128), 128)]
WAYS = ("ours", "eager", "copy")
check_once = cache(check_parity)
each_case_and_way = pytest.mark.parametrize(
    ("case", "way"),
    [
        pytest.param(Case(shape, features), way, id=f"{size_name(shape)} to {features}-{way}")
        for shape, features in SHAPES
        for way in WAYS
    ],
)


def name_of(case: Case) -> str:
    return f"{size_name(case.shape)} to {case.features}"


def function_of(case: Case, way: str) -> Callable[..., Any]:
    if way == "ours":
        check_once(case)
        return linear
    return F.linear


@each_case_and_way
def bench_forward(benchmark: Any, case: Case, way: str) -> None:
    x, weight, bias, dy = (value.to(DEVICE) for value in case.operands())
    moved, function = x.nbytes + weight.nbytes + dy.nbytes, function_of(case, way)
    run = copy(moved) if way == "copy" else lambda: function(x, weight, bias)
    with torch.no_grad():
        measure(benchmark, "linear forward", name_of(case), way, run, moved)


@each_case_and_way
def bench_forward_and_backward(benchmark: Any, case: Case, way: str) -> None:
    *operands, dy = (value.to(DEVICE) for value in case.operands())
    moved, function = 3 * (operands[0].nbytes + operands[1].nbytes) + 2 * dy.nbytes, function_of(case, way)
    leaves = [value.requires_grad_() for value in operands]

    def run() -> Any:
        return torch.autograd.grad(function(*leaves), leaves, dy)

    measure(benchmark, "linear forward and backward", name_of(case), way, copy(moved) if way == "copy" else run, moved)
