"""A stand-in for CUDA graphs on a CPU: what is recorded is operations and their operands, and a replay knows nothing else.

As with a captured graph, Python runs once: a branch taken, a number read or a tensor made while recording is what every replay
goes by, and data gets in through tensors alone. As there, recording changes no data that was there before, and what lives within
a replay is nobody's afterwards: it is filled with NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Work = Callable[[], None]


class OperationRecorder:
    """A `GraphRecorder`. fail_at: number of the operation at which recordings fail, as a forbidden one makes a capture fail."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.fail_at = fail_at
        self.warm_ups, self.recordings, self.replays = 0, 0, 0

    def warm_up(self, work: Work) -> None:
        self.warm_ups += 1
        work()

    def record(self, work: Work) -> RecordedOperations:
        recording = RecordedOperations(self)
        try:
            with recording:
                work()
        finally:
            recording.undo()
        assert recording.operations, "nothing was recorded"
        self.recordings += 1
        return recording


class RecordedOperations(TorchDispatchMode):
    """What was done within the context, to be done again by `replay`."""

    def __init__(self, recorder: OperationRecorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []
        self._made: dict[int, Tensor] = {}  # storages by number; kept, so that a number is not given twice
        self._before: dict[int, tuple[Tensor, Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if len(self.operations) == self.recorder.fail_at:
            raise RuntimeError("operation not permitted when stream is capturing\nsecond line")
        for tensor in _written(func, args, kwargs):
            number = tensor.untyped_storage()._cdata
            if number not in self._made and number not in self._before:
                self._before[number] = tensor, tensor.untyped_storage().clone()
        results = func(*args, **kwargs)
        outputs = [value for value in tree_leaves(results) if isinstance(value, Tensor)]
        given = {value.untyped_storage()._cdata for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
        new = [value for value in outputs if value.untyped_storage()._cdata not in given]
        self._made |= {value.untyped_storage()._cdata: value for value in new}
        self.operations.append((func, args, kwargs, new))
        return results

    def undo(self) -> None:
        """Recording does nothing: put back what it wrote into what had been there."""
        for tensor, storage in self._before.values():
            tensor.untyped_storage().copy_(storage)
        self._poison()

    def replay(self) -> None:
        self.recorder.replays += 1
        with torch.no_grad():
            for func, args, kwargs, new in self.operations:
                if not new and not _written(func, args, kwargs):
                    continue  # a view: it has seen all along what its base is
                results = [value for value in tree_leaves(func(*args, **kwargs)) if isinstance(value, Tensor)]
                for kept, result in zip(new, results if new else (), strict=True):
                    kept.copy_(result)
        self._poison()

    def _poison(self) -> None:
        for value in self._made.values():
            if value.is_floating_point():
                value.fill_(torch.nan)


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The operands that an operation writes to."""
    found = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            found += [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    return found
