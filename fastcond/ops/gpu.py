"""The Triton launchers, imported when a GPU first asks for them: importing Triton takes longer than a CPU user should wait.

Triton launches on the current device, so the registrations that call a launcher make its tensors' device the current one.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from types import ModuleType


@cache
def launchers(module: str) -> ModuleType | None:
    """The module of launchers `module`, of fastcond.ops; None where Triton is not installed, and the reference runs instead."""
    return importlib.import_module(module) if importlib.util.find_spec("triton") is not None else None
