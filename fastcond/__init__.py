"""fastcond: train and sample class-conditional diffusion models: a label in, images out.

The public names are loaded when they are first asked for: a command that samples does not wait for what trains.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastcond.config import DiffusionConfig, UNetConfig
    from fastcond.data import LabelledImages, open_dataset
    from fastcond.diffusion import NoiseSchedule, StepTable, ddim, ddpm, dpmpp2m, heun
    from fastcond.engine import generate
    from fastcond.interop import Pipeline, accelerate, load_diffusers, save_diffusers
    from fastcond.nn import ConditionalUNet
    from fastcond.training import Run, load_run

__version__ = "0.1.0"

__all__ = [
    "ConditionalUNet",
    "DiffusionConfig",
    "LabelledImages",
    "NoiseSchedule",
    "Pipeline",
    "Run",
    "StepTable",
    "UNetConfig",
    "accelerate",
    "ddim",
    "ddpm",
    "dpmpp2m",
    "generate",
    "heun",
    "load_diffusers",
    "load_run",
    "open_dataset",
    "save_diffusers",
]

_HOMES = {
    "config": ("DiffusionConfig", "UNetConfig"),
    "data": ("LabelledImages", "open_dataset"),
    "diffusion": ("NoiseSchedule", "StepTable", "ddim", "ddpm", "dpmpp2m", "heun"),
    "engine": ("generate",),
    "interop": ("Pipeline", "accelerate", "load_diffusers", "save_diffusers"),
    "nn": ("ConditionalUNet",),
    "training": ("Run", "load_run"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
