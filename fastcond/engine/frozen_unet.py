"""The inference form of a network: what a run does not change is worked out before its loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from fastcond.config import UNetConfig
from fastcond.engine.conditioning_table import ConditioningTable
from fastcond.engine.native_network import NativeNetwork
from fastcond.engine.network_walk import Walk
from fastcond.engine.packed_weights import PackedWeights
from fastcond.engine.torch_operations import TorchOperations
from fastcond.nn import ConditionalUNet
from fastcond.ops import native


class Denoiser(Protocol):
    """A network with the timesteps and labels of a run: what `SamplingStep` calls."""

    def __call__(self, x_t: Tensor, row: Tensor, copies: int = 1) -> Tensor:
        """The network's output [N, out_channels, H, W] for the first N images.

        Args: x_t: float32 [N, C, H, W]. row: int64 [1], of the table of timesteps. copies: x_t is that many times the same
            images, one batch after the other, so that what no condition enters needs to be computed for one of them only.
        """
        ...

    def static_tensors(self) -> dict[str, Tensor]:
        """Every tensor that a call may touch beyond its arguments and those it makes for itself, by name."""
        ...


@dataclass
class NativeForms:
    """A network as native calls, one for each (height, width) that was asked for, and the packed weights that they share."""

    weights: PackedWeights = field(default_factory=PackedWeights)
    of_size: dict[tuple[int, int], NativeNetwork] = field(default_factory=dict)


class FrozenUNet:
    """The inference form of a `ConditionalUNet`, equal to it but for float rounding.

    Scales, shifts and biases of all blocks come from a `ConditioningTable`; nothing of the embedding is computed in the loop.

    On a CPU with the native library, and in float32, an evaluation is one native call, with packed weights: copies of what the
    model's were when it was frozen.

    Args:
        model: on any device, in any mode; dropout is left out. It is not changed.
        use_native: False: PyTorch's operations, as on a GPU, where the native call is possible too.
        forms: what was made of the same model and the same weights before, to be used and added to.
    """

    def __init__(self, model: ConditionalUNet, *, use_native: bool = True, forms: NativeForms | None = None) -> None:
        self.model, self.walk = model, Walk(model)
        self._library = native.native if use_native and has_native_dtype(model) else None
        self._forms = NativeForms() if forms is None else forms
        if self._library is not None:
            self.native_network(*model.config.image_size)

    def native_network(self, height: int, width: int) -> NativeNetwork:
        """The network for images of that size as one native call."""
        networks = self._forms.of_size
        if (height, width) not in networks:
            self.model.check_size(height, width)
            networks[height, width] = NativeNetwork(self._library, self.walk, self._forms.weights, height, width)
        return networks[height, width]

    def denoiser(self, timesteps: Tensor, labels: Tensor) -> Denoiser:
        """For a run's timesteps, int64 or float32 [rows], and its images' labels, int64 [N] in 0 .. K."""
        table = ConditioningTable(self.model, timesteps, labels)
        kind = _TorchDenoiser if self._library is None else _NativeDenoiser
        return kind(self, table, timesteps, labels)

    @torch.no_grad()
    def __call__(self, x_t: Tensor, timestep: int, label: Tensor) -> Tensor:
        """The network's output for x_t [B, C, H, W] at one timestep, label int64 [B], as of a call of the model."""
        at = torch.tensor([timestep], device=label.device)
        return self.denoiser(at, label)(x_t, torch.zeros_like(at))


def has_native_dtype(model: ConditionalUNet) -> bool:
    """Whether all parameters are float32 on the CPU, which the native call needs."""
    return all(p.device.type == "cpu" and p.dtype == torch.float32 for p in model.parameters())


class _TorchDenoiser:
    """Nothing in a call depends on the host, so it can be captured, provided that the table is held whole."""

    def __init__(self, frozen: FrozenUNet, table: ConditioningTable, timesteps: Tensor, labels: Tensor) -> None:
        self._frozen, self._table, self._slots = frozen, table, table.slots(labels)
        self._ends = Ends(frozen.model.config, timesteps)
        self._values, self._entry_of_row = table.whole() if table.is_whole else (torch.empty(0), torch.empty(0))

    def __call__(self, x_t: Tensor, row: Tensor, copies: int = 1) -> Tensor:
        self._frozen.model.check_size(*x_t.shape[2:])
        slots = self._slots[: len(x_t)]
        if self._table.is_whole:
            at = self._entry_of_row.index_select(0, row) * len(self._table.labels) + slots
            columns = self._values.flatten(0, 1).index_select(0, at)
        else:
            columns = self._table.row(int(row)).index_select(0, slots)
        # A sample is float32 whatever the network is.
        y = self._frozen.walk(TorchOperations(columns), self._ends.before(x_t).to(self._frozen.model.dtype))
        return self._ends.after(y, row).to(x_t.dtype)

    def static_tensors(self) -> dict[str, Tensor]:
        model = self._frozen.model
        named = (*model.named_parameters(), *model.named_buffers())
        own = {"slots": self._slots, "table": self._values, "entry_of_row": self._entry_of_row, "timesteps": self._ends.timesteps}
        return {**own, **{f"model.{name}": value for name, value in named}}


class _NativeDenoiser:
    """On the CPU, where the row is at hand."""

    def __init__(self, frozen: FrozenUNet, table: ConditioningTable, timesteps: Tensor, labels: Tensor) -> None:
        self._frozen, self._table, self._slots = frozen, table, table.slots(labels)
        self._ends = Ends(frozen.model.config, timesteps)

    def __call__(self, x_t: Tensor, row: Tensor, copies: int = 1) -> Tensor:
        height, width = x_t.shape[2:]
        columns, slots = self._table.row(int(row)), self._slots[: len(x_t)]
        network = self._frozen.native_network(height, width)
        return self._ends.after(network.evaluate(self._ends.before(x_t), columns, slots, copies), row)

    def static_tensors(self) -> dict[str, Tensor]:
        return {"slots": self._slots, "timesteps": self._ends.timesteps}


class Ends:
    """What some networks of others do to their input and their output. timesteps: int64 [rows], of a run."""

    def __init__(self, config: UNetConfig, timesteps: Tensor) -> None:
        self.timesteps, self._config = timesteps, config

    def before(self, x_t: Tensor) -> Tensor:
        return 2 * x_t - 1 if self._config.center_input else x_t

    def after(self, y: Tensor, row: Tensor) -> Tensor:
        return y / self.timesteps.index_select(0, row).to(y.dtype) if self._config.time_embedding == "fourier" else y
