"""The inference form of a network: what a run does not change is worked out before its loop."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from fastcond.engine.conditioning_table import ConditioningTable
from fastcond.engine.network_walk import Walk
from fastcond.engine.torch_operations import TorchOperations
from fastcond.nn import ConditionalUNet


class Denoiser(Protocol):
    """A network with the timesteps and labels of a run: what `SamplingStep` calls."""

    def __call__(self, x_t: Tensor, row: Tensor) -> Tensor:
        """x_t float32 [N, C, H, W], of the first N images, at the row that row, int64 [1], holds -> [N, out_channels, H, W]."""
        ...

    def static_tensors(self) -> dict[str, Tensor]:
        """Every tensor that a call may touch beyond its arguments and those it makes for itself, by name."""
        ...


class FrozenUNet:
    """The inference form of a `ConditionalUNet`, equal to it but for float rounding.

    Scales, shifts and biases of all blocks come from a `ConditioningTable`; nothing of the embedding is computed in the loop.

    Args: model: on any device, in any mode; dropout is left out. It is not changed.
    """

    def __init__(self, model: ConditionalUNet) -> None:
        self.model, self.walk = model, Walk(model)

    def denoiser(self, timesteps: Tensor, labels: Tensor) -> Denoiser:
        """For a run's timesteps, int64 [rows], and its images' labels, int64 [N] in 0 .. K."""
        return _TorchDenoiser(self, ConditioningTable(self.model, timesteps, labels), labels)

    @torch.no_grad()
    def __call__(self, x_t: Tensor, timestep: int, label: Tensor) -> Tensor:
        """The network's output for x_t [B, C, H, W] at one timestep, label int64 [B], as of a call of the model."""
        at = torch.tensor([timestep], device=label.device)
        return self.denoiser(at, label)(x_t, torch.zeros_like(at))


class _TorchDenoiser:
    """Nothing in a call depends on the host, so it can be captured, provided that the table is held whole."""

    def __init__(self, frozen: FrozenUNet, table: ConditioningTable, labels: Tensor) -> None:
        self._frozen, self._table, self._slots = frozen, table, table.slots(labels)
        self._values, self._entry_of_row = table.whole() if table.is_whole else (torch.empty(0), torch.empty(0))

    def __call__(self, x_t: Tensor, row: Tensor) -> Tensor:
        slots = self._slots[: len(x_t)]
        if self._table.is_whole:
            at = self._entry_of_row.index_select(0, row) * len(self._table.labels) + slots
            columns = self._values.flatten(0, 1).index_select(0, at)
        else:
            columns = self._table.row(int(row)).index_select(0, slots)
        return self._frozen.walk(TorchOperations(columns), x_t)

    def static_tensors(self) -> dict[str, Tensor]:
        model = self._frozen.model
        named = (*model.named_parameters(), *model.named_buffers())
        own = {"slots": self._slots, "table": self._values, "entry_of_row": self._entry_of_row}
        return {**own, **{f"model.{name}": value for name, value in named}}
