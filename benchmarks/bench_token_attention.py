"""token_attention on the maps where small U-Nets attend, in training: the output alone, and with all gradients.

*eager* is F.scaled_dot_product_attention between the views that make heads of channels and its autograd; *reference* is the same.
Bytes that cannot be saved: forward q, k, v in, y out; with the backward all of them and dy in again, three gradients out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from benchmarks.measuring import DEVICE, copy, measure, size_name
from fastcond.ops import token_attention
from fastcond.ops.token_attention import reference
from tests.support.token_attention import Case, check_parity

# ([B, tokens, C], heads)
SHAPES = [
    ((32, 64, 128), 16),
    ((32, 64, 128), 4),
    ((64, 16, 64), 2),
    ((8, 256, 256), 8),
    ((8, 256, 256), 1),
    ((2, 1024, 128), 4),
    ((1, 64, 128), 16),
]
WAYS = ("ours", "eager", "copy")
check_once = cache(check_parity)
each_case_and_way = pytest.mark.parametrize(
    ("case", "way"),
    [
        pytest.param(Case(shape, heads), way, id=f"{size_name(shape)}, {heads} heads-{way}")
        for shape, heads in SHAPES
        for way in WAYS
    ],
)


def name_of(case: Case) -> str:
    return f"{size_name(case.shape)}, {case.heads} heads"


def function_of(case: Case, way: str) -> Callable[..., Any]:
    if way == "ours":
        check_once(case)
        return token_attention
    return reference.forward


@each_case_and_way
def bench_forward(benchmark: Any, case: Case, way: str) -> None:
    q, k, v, _ = (value.to(DEVICE) for value in case.operands())
    moved, function = 4 * q.nbytes, function_of(case, way)
    run = copy(moved) if way == "copy" else lambda: function(q, k, v, case.heads)
    with torch.no_grad():
        measure(benchmark, "token_attention forward", name_of(case), way, run, moved)


@each_case_and_way
def bench_forward_and_backward(benchmark: Any, case: Case, way: str) -> None:
    *operands, dy = (value.to(DEVICE) for value in case.operands())
    moved, function, leaves = 12 * dy.nbytes, function_of(case, way), [value.requires_grad_() for value in operands]

    def run() -> Any:
        return torch.autograd.grad(function(*leaves, case.heads), leaves, dy)

    measure(benchmark, "token_attention forward and backward", name_of(case), way, copy(moved) if way == "copy" else run, moved)
