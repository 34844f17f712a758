"""ada_group_norm on the maps of small U-Nets: the op, its reference, and PyTorch's own operations one after another.

GB/s counts the bytes that cannot be saved: forward x in and y out, backward x and dy in and dx out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcond.ops import native
from tests.support.ada_group_norm import Case, check_parity, value_and_gradients

# (batch, channels, H, W), 32 groups: one image and a training batch, the fine and the coarse level.
SIZES = [(1, 64, 64, 64), (4, 128, 64, 64), (64, 64, 16, 16), (64, 128, 8, 8)]
ROUNDS = 15


@pytest.fixture(params=["op", "reference", "eager"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """ "op" is the native kernel; "reference" the same op without it; "eager" group_norm, modulation and SiLU of PyTorch."""
    if request.param == "op" and native.native is None:
        pytest.skip("the native library is not built; the op is the reference")
    if request.param == "reference":
        monkeypatch.setattr(native, "native", None)
    return request.param


def case_of(size: tuple[int, ...], channels_last: bool) -> Case:
    return Case(size, 32, channels_last=channels_last)


def time(benchmark: Any, name: str, moved: int, run: Callable[[], Any]) -> None:
    benchmark.group = name
    benchmark.pedantic(run, rounds=ROUNDS, iterations=1, warmup_rounds=3)
    benchmark.extra_info["GB/s"] = round(moved / 1e9 / benchmark.stats["median"], 3)


def name_of(what: str, size: tuple[int, ...], channels_last: bool, threads: int) -> str:
    layout = "channels_last" if channels_last else "contiguous"
    return f"ada_group_norm {what} {'x'.join(map(str, size))} {layout}, {threads} threads"


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def bench_forward(benchmark: Any, threads: int, way: str, size: tuple[int, ...], channels_last: bool) -> None:
    case = case_of(size, channels_last)
    if way != "eager":
        check_parity(case)
    operands = [None if operand is None else operand.detach() for operand in case.operands()]
    function = case.composed if way == "eager" else case.ours
    moved = 2 * operands[0].nbytes
    time(benchmark, name_of("forward", size, channels_last, threads), moved, lambda: function(operands))


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def bench_forward_and_backward(benchmark: Any, threads: int, way: str, size: tuple[int, ...], channels_last: bool) -> None:
    case = case_of(size, channels_last)
    if way != "eager":
        check_parity(case)
    operands, dy = case.operands(), case.upstream()
    if channels_last:
        dy = dy.contiguous(memory_format=torch.channels_last)
    function = case.composed if way == "eager" else case.ours
    moved = 5 * operands[0].nbytes

    def run() -> dict[str, Tensor]:
        return value_and_gradients(function(operands), operands, dy)

    time(benchmark, name_of("forward and backward", size, channels_last, threads), moved, run)
