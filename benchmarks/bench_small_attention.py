"""small_attention on the maps where small U-Nets attend: norm, QKV, softmax, projection and residual.

*eager* is ada_group_norm, F.linear, scaled_dot_product_attention, F.linear and an addition. Norms are folded and weights packed
beforehand. Bytes that cannot be saved: x, the weights and the residual in, y out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks.bench_norm_conv import GROUPS, WAYS, on_device
from benchmarks.measuring import compiled, copy, measure, size_name
from fastcond.ops import ada_group_norm
from fastcond.ops.small_attention import reference
from tests.support.small_attention import Case, check_parity

# ([B, C, H, W], heads)
COMPILED = [((32, 128, 8, 8), 16), ((32, 128, 8, 8), 4), ((1, 128, 8, 8), 16)]
OTHERS = [((8, 256, 16, 16), 8), ((8, 256, 8, 8), 32), ((32, 64, 4, 4), 8), ((1, 256, 16, 16), 8), ((64, 64, 8, 8), 4)]
check_once = cache(check_parity)


def cases() -> list[Case]:
    return [Case(shape, heads) for shape, heads in COMPILED + OTHERS]


def name_of(case: Case) -> str:
    return f"{size_name(case.shape)}, {case.heads} heads"


def way_of(case: Case, way: str, operands: dict[str, Any]) -> Callable[[], Any]:
    if way == "ours":
        check_once(case)
        return lambda: case.ours(operands)
    names = ("qkv_weight", "qkv_bias", "out_weight", "out_bias")
    weights = [operands[name] for name in names]
    x, residual, norm = operands["x"], operands["residual"], operands["norm"]
    if way == "reference":
        return lambda: reference.forward(x, *norm, *weights, None, residual, case.heads)
    scale, shift, channels = norm.gain - 1, norm.offset, x.shape[1]

    def attention(u: torch.Tensor) -> torch.Tensor:
        qkv = F.linear(u.flatten(2).transpose(1, 2), weights[0], weights[1])
        q, k, v = qkv.reshape(len(u), -1, 3, case.heads, channels // case.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(len(u), -1, channels)
        return F.linear(attended, weights[2], weights[3]).transpose(1, 2).reshape(u.shape) + residual

    if way == "eager":
        return lambda: attention(ada_group_norm(x, scale, shift, GROUPS))

    def by_hand(x: torch.Tensor) -> torch.Tensor:
        return attention(F.group_norm(x, GROUPS) * (1 + scale[:, :, None, None]) + shift[:, :, None, None])

    function = compiled(by_hand)
    return lambda: function(x)


def is_timed(case: Case, way: str) -> bool:
    return way != "compile" or (case.shape, case.heads) in COMPILED


@pytest.mark.parametrize(
    ("case", "way"),
    [pytest.param(case, way, id=f"{name_of(case)}-{way}") for case in cases() for way in WAYS if is_timed(case, way)],
)
def bench_small_attention(benchmark: Any, case: Case, way: str) -> None:
    operands = {name: on_device(value) for name, value in case.operands().items()}
    moved = sum(operands[name].nbytes for name in ("qkv_weight", "out_weight")) + 3 * operands["x"].nbytes
    with torch.no_grad():
        run = copy(moved) if way == "copy" else way_of(case, way, operands)
        measure(benchmark, "small_attention", name_of(case), way, run, moved)
