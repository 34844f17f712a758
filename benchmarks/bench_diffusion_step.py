"""One guided DDPM row: the op, and the same update written as PyTorch operations with torch.randn for noise.

GB/s counts what must move: x and both outputs in; x of both halves of the next batch and x_0 out. The reference draws
philox noise, which torch.randn keys to nothing, so the row without noise (DDIM) is timed too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcond.diffusion import NoiseSchedule, StepTable, ddim, ddpm
from fastcond.ops import diffusion_step, philox_normal
from fastcond.ops.philox import STEP_NOISE
from tests.tolerances import ONE_STEP

SIZES = [(1, 3, 64, 64), (16, 3, 32, 32), (64, 3, 16, 16), (64, 3, 64, 64)]
TABLES = {"ddpm": ddpm(NoiseSchedule.linear(), 50), "ddim": ddim(NoiseSchedule.linear(), 50)}
ROW, GUIDANCE = 20, 2.5


def inputs(size: tuple[int, ...]) -> tuple[list[Tensor], Tensor]:
    """x, conditional and unconditional output; seeds."""
    generator = torch.Generator().manual_seed(0)
    images = torch.arange(size[0])
    seeds = torch.stack((torch.full_like(images, 7), images), dim=1)
    return [torch.randn(size, generator=generator) for _ in range(3)], seeds


def eager(x: Tensor, cond: Tensor, uncond: Tensor, table: StepTable, noise: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """What one writes without a fused step; the coefficients are Python numbers."""
    k = {name: float(table.column(name)[ROW]) for name in ("p_x", "p_o", "c", "k_x", "k_0", "k_o", "k_n")}
    g = uncond + GUIDANCE * (cond - uncond)
    x_0 = (k["p_x"] * x + k["p_o"] * g).clamp(-k["c"], k["c"])
    x_next = k["k_x"] * x + k["k_0"] * x_0 + k["k_o"] * g
    if table.draws_noise:
        x_next = x_next + k["k_n"] * noise()
    return torch.cat([x_next, x_next]), x_0


@pytest.mark.parametrize("way", ["op", "eager"])
@pytest.mark.parametrize("sampler", TABLES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def bench_guided_row(benchmark: Any, threads: int, size: tuple[int, ...], sampler: str, way: str) -> None:
    (x, cond, uncond), seeds = inputs(size)
    table, row = TABLES[sampler], torch.tensor([ROW])
    buffer, x_0 = torch.empty(2 * size[0], *size[1:]), torch.empty(size)

    def step() -> tuple[Tensor, Tensor]:
        return diffusion_step(x, cond, uncond, table, row, seeds=seeds, guidance=GUIDANCE, out=buffer, out_x_0=x_0)

    expected = eager(x, cond, uncond, table, lambda: philox_normal(seeds, size[1:], step=row, stream=STEP_NOISE))
    for actual, truth in zip(step(), expected, strict=True):
        torch.testing.assert_close(actual, truth, **ONE_STEP)
    run = step if way == "op" else lambda: eager(x, cond, uncond, table, lambda: torch.randn(size))
    benchmark.group = f"diffusion_step {sampler} {'x'.join(map(str, size))}, {threads} threads"
    benchmark.pedantic(run, rounds=15, iterations=2, warmup_rounds=3)
    benchmark.extra_info["GB/s"] = round(6 * x.nbytes / 1e9 / benchmark.stats["median"], 3)
