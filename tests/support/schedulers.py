"""Running a diffusers scheduler and the step table of its configuration, on the same noise and a made-up network."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from fastcond.diffusion import StepTable, from_diffusers_config
from fastcond.engine.composed_step import composed_step, needs_composition
from fastcond.ops import diffusion_step, philox_normal
from fastcond.ops.philox import INITIAL_NOISE, STEP_NOISE
from tests.support.samplers import Network, seeds_of
from tests.tolerances import LARGEST_NORMAL, SCHEDULER, floor, largest_error

SHAPE = (2, 2, 4, 4)
_DRAWING_MODULES = ("ddpm", "ddim", "dpmsolver_multistep", "edm_dpmsolver_multistep")


def table_of(config: Mapping[str, Any], steps: int, **options: Any) -> StepTable:
    schedule, prediction, sampler = from_diffusers_config(config)
    table: StepTable = sampler(schedule, steps, prediction=prediction, **options)
    return table


def run_config(table: StepTable, network: Network) -> list[Tensor]:
    """What the network is fed at every row, and at last the image."""
    seeds, guidance = seeds_of(SHAPE[0]), torch.ones(SHAPE[0])
    x = philox_normal(seeds, SHAPE[1:], stream=INITIAL_NOISE) * table.initial_scale
    visited, history = [x], torch.zeros_like(x)
    advance: Any = composed_step if needs_composition(table) else diffusion_step
    for row in range(table.num_rows):
        out, x_0 = torch.empty_like(x), torch.empty_like(x)
        output = network(x, table.timesteps[row])
        kept = {"history": history if table.keeps_history else None, "out": out, "out_x_0": x_0}
        advance(x, output, None, table, torch.tensor([row]), seeds=seeds, guidance=guidance, **kept)
        x, history = out, x_0
        visited.append(x)
    return visited


def made(config: Mapping[str, Any], steps: int) -> Any:
    """The diffusers scheduler of a configuration, ready to run."""
    import diffusers

    scheduler = getattr(diffusers, config["_class_name"]).from_config(dict(config))
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        # Else diffusers looks for its place, and where karras sigmas visit the first timestep twice, begins with the second.
        scheduler.set_begin_index(0)
    return scheduler


def run_diffusers(scheduler: Any, network: Network, **options: Any) -> list[Tensor]:
    """The same by diffusers, as its pipelines call it; options go to every step()."""
    seeds = seeds_of(SHAPE[0])
    x = philox_normal(seeds, SHAPE[1:], stream=INITIAL_NOISE) * scheduler.init_noise_sigma
    visited = []
    for row, timestep in enumerate(scheduler.timesteps):
        fed = scheduler.scale_model_input(x, timestep)
        visited.append(fed)
        with _drawing(philox_normal(seeds, SHAPE[1:], step=row, stream=STEP_NOISE)):
            x = scheduler.step(network(fed, timestep), timestep, x, **options).prev_sample
    return [*visited, x]


@contextmanager
def _drawing(z: Tensor) -> Iterator[None]:
    """In here every scheduler draws z."""
    with ExitStack() as stack:
        for name in _DRAWING_MODULES:
            module = importlib.import_module(f"diffusers.schedulers.scheduling_{name}")
            stack.enter_context(mock.patch.object(module, "randn_tensor", lambda *args, **options: z))
        yield


class _InDouble:
    """torch, but that float32 is float64: what a scheduler casts to float32 stays exact."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def run_diffusers_in_double(config: Mapping[str, Any], steps: int, network: Network) -> list[Tensor]:
    """`run_diffusers` of a scheduler that keeps sigmas, in float64 from its float32 sigmas on.

    Its states are y = x/alpha, of size 20,000 at the start of a cosine schedule, and its steps differences of sigmas: in float32
    either has an error of 1e-3 there, which is none of the formulas'.
    """
    scheduler = made(config, steps)
    scheduler.sigmas = scheduler.sigmas.double()
    module = importlib.import_module(type(scheduler).__module__)
    seeds = seeds_of(SHAPE[0])
    x = philox_normal(seeds, SHAPE[1:], stream=INITIAL_NOISE).double() * scheduler.init_noise_sigma
    visited = []
    for row, timestep in enumerate(scheduler.timesteps):
        fed = scheduler.scale_model_input(x, timestep)
        visited.append(fed)
        z = philox_normal(seeds, SHAPE[1:], step=row, stream=STEP_NOISE).double()
        with _drawing(z), mock.patch.object(module, "torch", _InDouble()):
            x = scheduler.step(network(fed, timestep), timestep, x).prev_sample
    return [*visited, x]


def run_in_double(config: Mapping[str, Any], steps: int, network: Network, scale: float = 1.0) -> list[Tensor]:
    """`run_config` of a table without clamp and noise, its columns as they are before they are rounded, all in float64.

    scale: of the first x, to see what a rounding of it does to the run.
    """
    columns: dict[str, Tensor] = {}
    build = StepTable.from_columns

    def keep(timesteps: Tensor, given: Mapping[str, Tensor], **others: Any) -> StepTable:
        columns.update(given)
        return build(timesteps, given, **others)

    with mock.patch.object(StepTable, "from_columns", keep):
        table = table_of(config, steps)
    assert columns.keys() <= {"p_x", "p_o", "k_x", "k_0", "k_h"}, "neither clamp nor noise"
    x = philox_normal(seeds_of(SHAPE[0]), SHAPE[1:], stream=INITIAL_NOISE).double() * table.initial_scale * scale
    visited, history = [x], torch.zeros_like(x)
    for row in range(table.num_rows):
        p_x, p_o, k_x, k_0, k_h = (
            float(columns[name][row]) if name in columns else 0.0 for name in ("p_x", "p_o", "k_x", "k_0", "k_h")
        )
        x_0 = p_x * x + p_o * network(x, table.timesteps[row])
        x, history = k_x * x + k_0 * x_0 + k_h * history, x_0
        visited.append(x)
    return visited


def assert_follows(table: StepTable, network: Network, theirs: list[Tensor]) -> None:
    """Every x of the run within tolerance of diffusers'.

    SCHEDULER, but no less than what float32 loses in the largest sum of terms of a row (`floor`): p_x x and p_o g are 1/sqrt(a)
    times x, 20,000 times at the start of a cosine schedule, and cancel where the prediction is eps.
    """
    ours = run_config(table, network)
    assert len(ours) == len(theirs), f"{len(ours) - 1} rows against {len(theirs) - 1}"
    largest, history = 0.0, 0.0
    for row in range(table.num_rows):
        p_x, p_o, c, k_x, k_0, k_o, k_h, k_n = table.coefficients[row].double().abs().tolist()
        x = float(ours[row].abs().max())
        g = float(network(ours[row], table.timesteps[row])[:, : SHAPE[1]].abs().max())
        x_0 = p_x * x + p_o * g
        largest = max(largest, k_x * x + k_0 * x_0 + k_o * g + k_h * history + k_n * LARGEST_NORMAL)
        history = min(x_0, c)
    allowed = max(SCHEDULER, floor(torch.float32, torch.zeros(1), largest, table.num_rows))
    for row, (visited, expected) in enumerate(zip(ours, theirs, strict=True)):
        error = largest_error(visited, expected)
        assert error <= allowed, f"row {row}: error {error:.3g}, {allowed:.3g} allowed"
