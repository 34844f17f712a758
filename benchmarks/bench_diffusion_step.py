"""One guided row: the op, its reference, and the chain of operations that diffusers' scheduler and guidance are.

Both halves of the next guided batch are written. Bytes that cannot be saved: x and two outputs in, x twice and x_0 out.
The reference draws its noise by the philox op, the others by torch.randn, which keys it to nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.measuring import DEVICE, WAYS, compiled, copy, measure, size_name
from fastcond.diffusion import NoiseSchedule, StepTable, ddim, ddpm
from fastcond.ops import diffusion_step, philox_normal
from fastcond.ops.diffusion_step import reference
from fastcond.ops.philox import STEP_NOISE
from tests.tolerances import ONE_STEP

SIZES = [(1, 3, 64, 64), (64, 3, 16, 16), (16, 3, 32, 32), (64, 3, 64, 64), (256, 3, 64, 64), (256, 16, 64, 64)]
SAMPLERS = {"ddpm": ddpm, "ddim": ddim}
# Without noise, and in the other memory format, the sizes in the middle say enough.
FEW = [(16, 3, 32, 32), (64, 3, 64, 64)]
STEPS, ROW, GUIDANCE = 50, 20, 2.5


@dataclass(frozen=True)
class Case:
    """A sampler's row on x of this size."""

    sampler: str
    size: tuple[int, ...]
    channels_last: bool = False

    def __str__(self) -> str:
        return f"{size_name(self.size)} fp32 {'channels_last' if self.channels_last else 'contiguous'}"

    def table(self) -> StepTable:
        return SAMPLERS[self.sampler](NoiseSchedule.linear(), STEPS).to(DEVICE)

    def inputs(self) -> list[Tensor]:
        """x, conditional and unconditional output."""
        generator = torch.Generator().manual_seed(0)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return [torch.randn(self.size, generator=generator).to(DEVICE, memory_format=layout) for _ in range(3)]

    def seeds(self) -> Tensor:
        images = torch.arange(self.size[0], device=DEVICE)
        return torch.stack((torch.full_like(images, 7), images), dim=1)


CASES = [
    *(Case("ddpm", size) for size in SIZES),
    *(Case("ddpm", size, channels_last=True) for size in FEW),
    *(Case("ddim", size) for size in FEW),
]


def by_hand(table: StepTable, draw: Callable[[Tensor], Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """The row in PyTorch operations: (x, cond, uncond) -> (both halves, x_0). The coefficients are Python numbers."""
    p_x, p_o, c, k_x, k_0, k_o, _, k_n = (float(value) for value in table.coefficients[ROW])

    def step(x: Tensor, cond: Tensor, uncond: Tensor) -> tuple[Tensor, Tensor]:
        g = uncond + GUIDANCE * (cond - uncond)
        x_0 = (p_x * x + p_o * g).clamp(-c, c)
        x_next = k_x * x + k_0 * x_0 + k_o * g
        if table.draws_noise:
            x_next = x_next + k_n * draw(x)
        return torch.cat([x_next, x_next]), x_0

    return step


def ours(case: Case) -> Callable[[], tuple[Tensor, Tensor]]:
    """The op writing into its buffers, after it was found equal to the row by hand."""
    (x, cond, uncond), seeds, table = case.inputs(), case.seeds(), case.table()
    row, buffer, x_0 = torch.tensor([ROW], device=DEVICE), torch.cat([x, x]), torch.empty_like(x)
    guidance = torch.full((len(x),), GUIDANCE, device=DEVICE)

    def run() -> tuple[Tensor, Tensor]:
        return diffusion_step(x, cond, uncond, table, row, seeds=seeds, guidance=guidance, out=buffer, out_x_0=x_0)

    expected = by_hand(table, lambda x: philox_normal(seeds, x.shape[1:], step=row, stream=STEP_NOISE))
    for actual, truth in zip(run(), expected(x, cond, uncond), strict=True):
        torch.testing.assert_close(actual, truth, **ONE_STEP)
    return run


def by_reference(case: Case) -> Callable[[], None]:
    (x, cond, uncond), table = case.inputs(), case.table()
    row, guidance = torch.tensor([ROW], device=DEVICE), torch.full((len(x),), GUIDANCE, device=DEVICE)
    operands = (x, cond, uncond, None, table.coefficients, row, guidance, case.seeds(), table.draws_noise)
    buffers = torch.cat([x, x]), torch.empty_like(x)
    return lambda: reference.step_into(*operands, *buffers)


def by_diffusers(case: Case) -> Callable[[], Tensor]:
    """Guidance, the scheduler's step with clipping, both halves of the next batch."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = {"ddpm": diffusers.DDPMScheduler, "ddim": diffusers.DDIMScheduler}[case.sampler]()
    scheduler.set_timesteps(STEPS)
    timestep, generator = scheduler.timesteps[ROW], torch.Generator(DEVICE).manual_seed(0)
    x, cond, uncond = case.inputs()

    def run() -> Tensor:
        g = uncond + GUIDANCE * (cond - uncond)
        return torch.cat([scheduler.step(g, timestep, x, generator=generator).prev_sample] * 2)

    return run


def by_compile(case: Case) -> Callable[[], tuple[Tensor, Tensor]]:
    """The row by hand: a scheduler's step cannot be compiled whole."""
    # Contiguous noise, as the scheduler draws it: randn_like in channels_last takes several times as long.
    inputs, step = case.inputs(), compiled(by_hand(case.table(), lambda x: torch.randn(x.shape, device=x.device)))
    return lambda: step(*inputs)


@pytest.mark.parametrize(
    ("case", "way"), [pytest.param(case, way, id=f"{case.sampler} {case}-{way}") for case in CASES for way in WAYS]
)
def bench_guided_row(benchmark: Any, case: Case, way: str) -> None:
    moved = 6 * 4 * torch.Size(case.size).numel()
    ways = {"ours": ours, "reference": by_reference, "eager": by_diffusers, "compile": by_compile}
    with torch.no_grad():
        run = copy(moved) if way == "copy" else ways[way](case)
        measure(benchmark, f"diffusion_step {case.sampler}", str(case), way, run, moved)
