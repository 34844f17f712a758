"""What a call costs before it computes anything: the ops on tensors of a few numbers, beside PyTorch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measuring import DEVICE, measure
from fastcond.diffusion import NoiseSchedule, ddpm
from fastcond.ops import ada_group_norm, diffusion_step, philox_normal

OP = "call overhead"
SHAPE, GROUPS = (2, 8, 2, 2), 4


def differentiable(requires_grad: bool) -> dict[str, Callable[[], Tensor]]:
    """Calls that have a gradient, by name."""
    x, y, scale, shift = (torch.randn(shape, device=DEVICE) for shape in (SHAPE, SHAPE, SHAPE[:2], SHAPE[:2]))
    weight, bias = torch.randn(2, SHAPE[1], device=DEVICE).unbind()
    for value in (x, y, scale, shift, weight, bias):
        value.requires_grad_(requires_grad)
    return {
        "torch.add": lambda: torch.add(x, y),
        "F.silu": lambda: F.silu(x),
        "F.group_norm": lambda: F.group_norm(x, GROUPS, weight, bias),
        "F.silu(F.group_norm)": lambda: F.silu(F.group_norm(x, GROUPS, weight, bias)),
        "ada_group_norm, affine, silu": lambda: ada_group_norm(x, num_groups=GROUPS, weight=weight, bias=bias, activation="silu"),
        "ada_group_norm, scale and shift, silu": lambda: ada_group_norm(x, scale, shift, GROUPS, activation="silu"),
    }


def sampling() -> dict[str, Callable[[], Any]]:
    """Calls that have none."""
    x, cond, uncond, x_0 = (torch.randn(SHAPE, device=DEVICE) for _ in range(4))
    table, row, buffer = ddpm(NoiseSchedule.linear(), 10).to(DEVICE), torch.tensor([3], device=DEVICE), torch.cat([x, x])
    seeds, guidance = torch.tensor([[7, 0], [7, 1]], device=DEVICE), torch.full((2,), 2.5, device=DEVICE)
    return {
        "torch.randn": lambda: torch.randn(SHAPE, device=DEVICE),
        "philox_normal": lambda: philox_normal(seeds, SHAPE[1:], step=row),
        "diffusion_step": lambda: diffusion_step(x, cond, None, table, row, seeds=seeds),
        "diffusion_step, guided, into buffers": lambda: diffusion_step(
            x, cond, uncond, table, row, seeds=seeds, guidance=guidance, out=buffer, out_x_0=x_0
        ),
    }


@pytest.mark.parametrize("name", [*differentiable(False), *sampling()])
def bench_without_gradient(benchmark: Any, name: str) -> None:
    run = {**differentiable(False), **sampling()}[name]
    with torch.no_grad():
        measure(benchmark, OP, "without gradient", name, run)


@pytest.mark.parametrize("name", differentiable(True))
def bench_with_gradient(benchmark: Any, name: str) -> None:
    measure(benchmark, OP, "forward with gradient", name, differentiable(True)[name])


@pytest.mark.parametrize("name", differentiable(True))
def bench_forward_and_backward(benchmark: Any, name: str) -> None:
    forward, upstream = differentiable(True)[name], torch.ones(SHAPE, device=DEVICE)
    measure(benchmark, OP, "forward and backward", name, lambda: forward().backward(upstream))
