"""ada_group_norm on the maps of small U-Nets, 32 groups, with affine parameters, scale, shift and SiLU.

Bytes that cannot be saved: forward x in and y out; with the backward x and dy in and dx out besides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from benchmarks.measuring import DEVICE, WAYS, compiled, copy, measure, size_name
from fastcond.ops.ada_group_norm import reference
from tests.support.ada_group_norm import Case, check_parity, value_and_gradients

# [B, C, H, W]. torch.compile takes seconds for each shape, so it is timed on some.
COMPILED = [(1, 128, 32, 32), (32, 64, 16, 16), (32, 128, 16, 16), (8, 128, 32, 32), (8, 256, 32, 32), (64, 256, 32, 32)]
OTHERS = [(1, 256, 16, 16), (1, 64, 64, 64), (16, 64, 64, 64), (256, 64, 16, 16), (256, 128, 16, 16)]
# Maps of 2 to 8 MB in bf16 too, and as in a network that adds its condition before the norm.
BFLOAT16 = [(32, 128, 16, 16), (8, 256, 32, 32)]
UNCONDITIONED = [(32, 128, 16, 16), (8, 256, 32, 32)]
GROUPS = 32
DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16"}


def cases() -> list[Case]:
    contiguous = [
        *(Case(size, GROUPS, device=DEVICE.type) for size in COMPILED + OTHERS),
        *(Case(size, GROUPS, torch.bfloat16, device=DEVICE.type) for size in BFLOAT16),
        *(Case(size, GROUPS, conditioning="none", device=DEVICE.type) for size in UNCONDITIONED),
    ]
    return [replace(case, channels_last=last) for case in contiguous for last in (False, True)]


def name_of(case: Case) -> str:
    layout = "channels_last" if case.channels_last else "contiguous"
    plain = ", no scale and shift" if case.conditioning == "none" else ""
    return f"{size_name(case.shape)} {DTYPES[case.dtype]} {layout}{plain}"


def is_timed(case: Case, way: str) -> bool:
    return way != "compile" or (case.shape in COMPILED and case.dtype == torch.float32 and case.conditioning != "none")


# Parity of output and gradients, once for the two benches of a case.
check_once = cache(check_parity)
each_case_and_way = pytest.mark.parametrize(
    ("case", "way"),
    [pytest.param(case, way, id=f"{name_of(case)}-{way}") for case in cases() for way in WAYS if is_timed(case, way)],
)


def function_of(case: Case, way: str) -> Callable[..., Any]:
    if way == "ours":
        check_once(case)
        return case.ours
    return compiled(case.composed) if way == "compile" else case.composed


@each_case_and_way
def bench_forward(benchmark: Any, case: Case, way: str) -> None:
    operands = [None if operand is None else operand.detach() for operand in case.operands()]
    moved = 2 * operands[0].nbytes
    if way == "copy":
        run = copy(moved)
    elif way == "reference":
        run = lambda: reference.forward(*operands, GROUPS, case.eps, case.silu)  # noqa: E731
    else:
        function = function_of(case, way)
        run = lambda: function(operands)  # noqa: E731
    with torch.no_grad():
        measure(benchmark, "ada_group_norm forward", name_of(case), way, run, moved)


@each_case_and_way
def bench_forward_and_backward(benchmark: Any, case: Case, way: str) -> None:
    operands, dy = case.operands(), case.upstream()
    if case.channels_last:
        dy = dy.contiguous(memory_format=torch.channels_last)
    moved = 5 * operands[0].nbytes
    if way == "copy":
        run = copy(moved)
    elif way == "reference":
        run = reference_run(case, [None if operand is None else operand.detach() for operand in operands], dy)
    else:
        function = function_of(case, way)
        run = lambda: value_and_gradients(function(operands), operands, dy)  # noqa: E731
    measure(benchmark, "ada_group_norm forward and backward", name_of(case), way, run, moved)


def reference_run(case: Case, operands: list[Any], dy: torch.Tensor) -> Callable[[], Any]:
    needed = [operand is not None for operand in operands]

    def run() -> Any:
        _, mean, rstd = reference.forward(*operands, GROUPS, case.eps, case.silu)
        return reference.backward(dy, *operands, mean, rstd, GROUPS, case.silu, needed)

    return run
