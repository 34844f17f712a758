"""Living beside other libraries: their models, made faster, loaded and saved. What is not asked for is not imported."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastcond.interop.diffusers import load_diffusers
    from fastcond.interop.drop_in import accelerate
    from fastcond.interop.exporting import export_step
    from fastcond.interop.guided_diffusion import load_guided_diffusion
    from fastcond.interop.opening import open_model
    from fastcond.interop.pipeline import Pipeline
    from fastcond.interop.saving import save_diffusers

__all__ = ["Pipeline", "accelerate", "export_step", "load_diffusers", "load_guided_diffusion", "open_model", "save_diffusers"]

_HOME_OF = {
    "Pipeline": "pipeline",
    "accelerate": "drop_in",
    "export_step": "exporting",
    "load_diffusers": "diffusers",
    "load_guided_diffusion": "guided_diffusion",
    "open_model": "opening",
    "save_diffusers": "saving",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
