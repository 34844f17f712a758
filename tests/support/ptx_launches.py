"""Running what the Triton launchers launch by the interpreter of PTX: a step of the launchers on CPU tensors, no GPU needed."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tests.support import ptx
from tests.support.compiled import Launch

# The arguments that a kernel writes in full, by its name. They hold nothing before.
OUTPUTS = {
    "forward_kernel": ("y", "mean", "mean_rest", "rstd"),
    "apply_kernel": ("y", "mean", "mean_rest", "rstd"),
    "partial_statistics_kernel": ("partial",),
    "backward_kernel": ("dx", "dscale", "dshift", "A", "B"),
    "partial_gradients_kernel": ("partial",),
    "apply_gradients_kernel": ("dx", "dscale", "dshift", "A", "B"),
    "batch_sums_kernel": ("dweight", "dbias"),
    "draw_kernel": ("out",),
    "step_kernel": ("x_next", "x_next_half", "x_0"),
}


def run(launch: Launch, edit: Callable[[str], str] | None = None) -> ptx.Machine:
    """Execute one launch on its own tensors; every byte of its outputs has to be written. `edit` changes the PTX first."""
    arguments = [
        ptx.Buffer(ptx.memory_of(value), unwritten=True)
        if isinstance(value, torch.Tensor) and name in OUTPUTS[launch.name]
        else value
        for name, value in launch.arguments.items()
    ]
    machine = ptx.launch(launch.kernel, launch.grid, *arguments, edit=edit)
    for index, name in enumerate(launch.arguments):
        missing = int(machine.unwritten(index).sum()) if name in OUTPUTS[launch.name] else 0
        assert missing == 0, f"{launch.name} leaves {missing} bytes of {name} unwritten"
    return machine
