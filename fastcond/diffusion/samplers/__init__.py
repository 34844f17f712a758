"""Samplers: pure functions (schedule, steps, *, prediction, clip, spacing, ...) -> StepTable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from fastcond.diffusion.samplers.ddim import ddim
from fastcond.diffusion.samplers.ddpm import ddpm
from fastcond.diffusion.samplers.dpm_solver import dpmpp2m
from fastcond.diffusion.samplers.edm import edm
from fastcond.diffusion.samplers.heun import heun
from fastcond.diffusion.step_table import StepTable

SAMPLERS: Mapping[str, Callable[..., StepTable]] = MappingProxyType(
    {"ddpm": ddpm, "ddim": ddim, "dpmpp2m": dpmpp2m, "heun": heun}
)

__all__ = ["SAMPLERS", "ddim", "ddpm", "dpmpp2m", "edm", "heun"]
