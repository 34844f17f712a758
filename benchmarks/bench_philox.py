"""Noise for a batch of images: the native kernel, the reference, and torch.randn, which keys noise to nothing.

GB/s counts what is written; torch.randn is the baseline to stay near, not one that does the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fastcond.ops import native
from fastcond.ops.philox import op, reference
from tests.tolerances import NORMALS

SIZES = [(16, 3, 16, 16), (64, 3, 64, 64)]
STREAM = 1


def inputs(size: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.arange(size[0])
    return torch.stack((torch.full_like(images, 7), images), dim=1), torch.tensor([3])


def time(benchmark: Any, threads: int, size: tuple[int, ...], draw: Callable[[], torch.Tensor]) -> None:
    benchmark.group = f"philox_normal {'x'.join(map(str, size))}, {threads} threads"
    benchmark.pedantic(draw, rounds=30, iterations=3, warmup_rounds=3)
    gigabytes = draw().nbytes / 1e9
    benchmark.extra_info["GB/s"] = round(gigabytes / benchmark.stats["median"], 3)


@pytest.mark.parametrize("size", SIZES, ids=str)
def bench_native(benchmark: Any, threads: int, size: tuple[int, ...]) -> None:
    if native.native is None:
        pytest.skip("the native library is not built")
    seeds, step = inputs(size)
    expected = reference.philox_normal(seeds, step, size[1:], STREAM)
    torch.testing.assert_close(op.philox_normal_op(seeds, step, size[1:], STREAM), expected, **NORMALS)
    time(benchmark, threads, size, lambda: op.philox_normal_op(seeds, step, size[1:], STREAM))


@pytest.mark.parametrize("size", SIZES, ids=str)
def bench_reference(benchmark: Any, threads: int, size: tuple[int, ...]) -> None:
    seeds, step = inputs(size)
    time(benchmark, threads, size, lambda: reference.philox_normal(seeds, step, size[1:], STREAM))


@pytest.mark.parametrize("size", SIZES, ids=str)
def bench_torch_randn(benchmark: Any, threads: int, size: tuple[int, ...]) -> None:
    time(benchmark, threads, size, lambda: torch.randn(size))
