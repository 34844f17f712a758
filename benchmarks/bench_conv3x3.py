"""conv3x3 on the maps of small U-Nets in training: the output alone, and with all three gradients; channels_last.

*eager* is F.conv2d and its autograd; *reference* is the same, and so would *compile* be, to which a convolution is a call. Bytes
that cannot be saved: forward x and the weight in, y out; with the backward x, dy and the weight in again, dx and the weight's
gradient out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from benchmarks.measuring import DEVICE, copy, measure, size_name
from fastcond.ops import conv3x3
from tests.support.conv3x3 import Case, check_parity, pytorch

# (x [B, C, H, W], K): the convolutions of the 16x16 networks with 64-128 and 32-64-64 channels, of a 32x32 one with 128-256,
# and alone. The last two are a network's first and last, which conv3x3 leaves to PyTorch.
SHAPES = [
    ((32, 64, 16, 16), 64),
    ((32, 192, 16, 16), 64),
    ((32, 128, 8, 8), 128),
    ((32, 256, 8, 8), 128),
    ((64, 32, 16, 16), 32),
    ((64, 64, 8, 8), 64),
    ((64, 128, 4, 4), 64),
    ((8, 128, 32, 32), 128),
    ((8, 256, 16, 16), 256),
    ((1, 64, 16, 16), 64),
    ((64, 3, 16, 16), 32),
    ((64, 32, 16, 16), 3),
]
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
        check_once(case, conv3x3)
        return conv3x3
    return pytorch


@each_case_and_way
def bench_forward(benchmark: Any, case: Case, way: str) -> None:
    x, weight, bias, dy = (value.to(DEVICE) for value in case.operands() if value is not None)
    moved = x.nbytes + weight.nbytes + dy.nbytes
    function = function_of(case, way)
    with torch.no_grad():
        measure(
            benchmark,
            "conv3x3 forward",
            name_of(case),
            way,
            copy(moved) if way == "copy" else lambda: function(x, weight, bias),
            moved,
        )


@each_case_and_way
def bench_forward_and_backward(benchmark: Any, case: Case, way: str) -> None:
    x, weight, bias, dy = (value.to(DEVICE) for value in case.operands() if value is not None)
    moved = 3 * x.nbytes + 3 * weight.nbytes + 2 * dy.nbytes
    function, leaves = function_of(case, way), [value.requires_grad_() for value in (x, weight, bias)]

    def run() -> Any:
        return torch.autograd.grad(function(*leaves), leaves, dy)

    measure(benchmark, "conv3x3 forward and backward", name_of(case), way, copy(moved) if way == "copy" else run, moved)
