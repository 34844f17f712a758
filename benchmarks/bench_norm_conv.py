"""norm_conv on the maps of small U-Nets: norm, SiLU, 3x3 convolution, bias and residual.

*eager* is ada_group_norm, F.conv2d and an addition; "norm_conv against conv2d alone" is the same call beside the bare
convolution. Norms are folded and weights packed beforehand: that is done once a network, or outside the loop. Bytes that cannot
be saved: x, the weight and the residual in, y out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks.measuring import DEVICE, compiled, copy, measure, size_name
from fastcond.ops import ada_group_norm
from fastcond.ops.norm_conv import reference
from tests.support.norm_conv import Case, check_parity

# (x [B, C, H, W], K): the convolutions of the 16x16 network with 64-128 channels and of the 32x32 one with 128-256, at
# their batch sizes and alone.
COMPILED = [((32, 128, 16, 16), 128), ((8, 256, 16, 16), 256), ((1, 128, 16, 16), 128)]
OTHERS = [
    ((32, 64, 16, 16), 64),
    ((32, 128, 8, 8), 128),
    ((32, 256, 8, 8), 128),
    ((8, 128, 32, 32), 128),
    ((8, 256, 8, 8), 256),
    ((1, 64, 16, 16), 64),
    ((1, 128, 8, 8), 128),
    ((1, 256, 16, 16), 256),
    ((1, 128, 64, 64), 128),
    ((64, 32, 16, 16), 32),
]
WAYS = ("ours", "reference", "eager", "compile", "copy")
GROUPS = 32
check_once = cache(check_parity)


def name_of(case: Case) -> str:
    return f"{size_name(case.shape)} to {case.features}"


def cases() -> list[Case]:
    return [Case(shape, features) for shape, features in COMPILED + OTHERS]


def on_device(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(DEVICE)
    return type(value)(*map(on_device, value)) if isinstance(value, tuple) else value


def way_of(case: Case, way: str, operands: dict[str, Any]) -> Callable[[], Any]:
    x, weight, bias, residual = (operands[name] for name in ("x", "weight", "bias", "residual"))
    if way == "ours":
        check_once(case)
        return lambda: case.ours(operands)
    if way == "reference":
        mean, gain, offset = operands["norm"]
        return lambda: reference.forward(x, mean, gain, offset, weight, None, bias, residual, case.silu, False)
    last = weight.contiguous(memory_format=torch.channels_last)
    if way == "conv2d":
        return lambda: F.conv2d(x, last, bias, padding=1)
    scale, shift = operands["norm"].gain - 1, operands["norm"].offset
    if way == "eager":
        return lambda: F.conv2d(ada_group_norm(x, scale, shift, GROUPS, activation="silu"), last, bias, padding=1) + residual

    def by_hand(x: torch.Tensor) -> torch.Tensor:
        u = F.group_norm(x, GROUPS) * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
        return F.conv2d(F.silu(u), last, bias, padding=1) + residual

    function = compiled(by_hand)
    return lambda: function(x)


def is_timed(case: Case, way: str) -> bool:
    return way != "compile" or (case.shape, case.features) in COMPILED


def run_bench(benchmark: Any, op: str, case: Case, way: str, shown: str) -> None:
    operands = {name: on_device(value) for name, value in case.operands().items()}
    moved = sum(operands[name].nbytes for name in ("x", "weight")) + 2 * operands["residual"].nbytes
    with torch.no_grad():
        measure(benchmark, op, name_of(case), shown, copy(moved) if way == "copy" else way_of(case, way, operands), moved)


@pytest.mark.parametrize(
    ("case", "way"),
    [pytest.param(case, way, id=f"{name_of(case)}-{way}") for case in cases() for way in WAYS if is_timed(case, way)],
)
def bench_norm_conv(benchmark: Any, case: Case, way: str) -> None:
    run_bench(benchmark, "norm_conv", case, way, way)


@pytest.mark.parametrize("way", ["ours", "conv2d"])
@pytest.mark.parametrize("case", cases(), ids=name_of)
def bench_against_conv2d_alone(benchmark: Any, case: Case, way: str) -> None:
    run_bench(benchmark, "norm_conv against conv2d alone", case, way, "eager" if way == "conv2d" else way)
