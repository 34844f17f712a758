"""Normal noise for a batch of images: the op, its reference, and torch.randn, which keys noise to nothing.

Bytes that cannot be saved: the noise, out. torch.randn is a baseline to stay near; it does not do the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.measuring import DEVICE, WAYS, compiled, copy, measure, size_name
from fastcond.ops import philox_normal
from fastcond.ops.philox import STEP_NOISE, reference
from tests.tolerances import NORMALS

SIZES = [(1, 3, 64, 64), (64, 3, 16, 16), (64, 3, 64, 64), (256, 3, 64, 64), (256, 16, 64, 64)]


def way_of(way: str, size: tuple[int, ...]) -> Callable[[], Tensor]:
    images = torch.arange(size[0], device=DEVICE)
    seeds, step = torch.stack((torch.full_like(images, 7), images), dim=1), torch.tensor([3], device=DEVICE)

    def ours() -> Tensor:
        return philox_normal(seeds, size[1:], step=step, stream=STEP_NOISE)

    def by_reference() -> Tensor:
        return reference.philox_normal(seeds, step, size[1:], STEP_NOISE)

    def eager() -> Tensor:
        return torch.randn(size, device=DEVICE)

    if way == "ours":
        torch.testing.assert_close(ours(), by_reference(), **NORMALS)
        return ours
    return {"reference": by_reference, "eager": eager}[way] if way != "compile" else compiled(eager)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", SIZES, ids=size_name)
def bench_normal(benchmark: Any, size: tuple[int, ...], way: str) -> None:
    moved = 4 * torch.Size(size).numel()
    run = copy(moved) if way == "copy" else way_of(way, size)
    measure(benchmark, "philox_normal", f"{size_name(size)} fp32", way, run, moved)
