"""Training: the loop, and what it leaves on disk. The loop is loaded when it is first asked for: sampling needs the disk only."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastcond.training.run_directory import Run, RunDirectory, load_run

if TYPE_CHECKING:
    from fastcond.training.trainer import Intervals, Progress, Trainer

__all__ = ["Intervals", "Progress", "Run", "RunDirectory", "Trainer", "load_run"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.trainer"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
