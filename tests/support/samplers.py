"""Running a sampler's table, and diffusers' scheduler beside it, on the same noise and a made-up network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastcond.diffusion import StepTable
from fastcond.ops import diffusion_step, philox_normal
from fastcond.ops.philox import INITIAL_NOISE, STEP_NOISE

Network = Callable[[Tensor, Tensor], Tensor]
DIFFUSERS_PREDICTION = {"eps": "epsilon", "v": "v_prediction", "x_0": "sample"}


def seeds_of(images: int, run_seed: int = 11) -> Tensor:
    return torch.stack((torch.full((images,), run_seed), torch.arange(images)), dim=1)


def wavy_network(x: Tensor, timestep: Tensor) -> Tensor:
    """No multiple of x, so that every coefficient counts, and smooth, so that rounding is not amplified from row to row."""
    return 0.5 * torch.sin(x + timestep.float() / 100) + 0.2 * x


def run_table(table: StepTable, network: Network, shape: tuple[int, ...]) -> list[Tensor]:
    """x after every row, the initial noise first; images are numbered 0 .. B-1."""
    seeds = seeds_of(shape[0])
    x = philox_normal(seeds, shape[1:], stream=INITIAL_NOISE)
    visited, history = [x], torch.zeros_like(x)
    for row in range(table.num_rows):
        output = network(x, table.timesteps[row])
        x, history = diffusion_step(
            x,
            output,
            None,
            table,
            torch.tensor([row]),
            seeds=seeds,
            history=history if table.keeps_history else None,
        )
        visited.append(x)
    return visited


def run_scheduler(scheduler: Any, network: Network, shape: tuple[int, ...], step: Callable[..., Any]) -> list[Tensor]:
    """The same by a diffusers scheduler; step(output, t, x, z) gives diffusers the noise of that row."""
    seeds = seeds_of(shape[0])
    x = philox_normal(seeds, shape[1:], stream=INITIAL_NOISE)
    visited = [x]
    for row, timestep in enumerate(scheduler.timesteps):
        z = philox_normal(seeds, shape[1:], step=row, stream=STEP_NOISE)
        x = step(network(x, timestep), timestep, x, z).prev_sample
        visited.append(x)
    return visited
