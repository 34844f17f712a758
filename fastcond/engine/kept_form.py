"""A network's inference form, kept from one batch to the next for as long as the weights are what they were.

Packing them takes as long as several evaluations. Whether they have changed is read from the weights themselves: PyTorch counts
the changes of a tensor, but not those that come through `.data`, NumPy or another library, and an image of former weights would
look like any other.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from fastcond.engine.frozen_unet import FrozenUNet, NativeForms, has_native_dtype
from fastcond.nn import ConditionalUNet
from fastcond.ops import native


class _KeptForm:
    """What is kept of one network. It keeps no model alive, only its modules' weights."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._state: Any = None
        self._forms: NativeForms | None = None

    def frozen(self, model: ConditionalUNet) -> FrozenUNet:
        """Of the model's present weights."""
        if native.native is None or not has_native_dtype(model):
            self._state = self._forms = None
            return FrozenUNet(model)
        state = _state(model, native.native)
        if self._forms is None or state != self._state:
            self._state, self._forms = state, NativeForms()
        return FrozenUNet(model, forms=self._forms)


def _state(model: ConditionalUNet, library: Any) -> Any:
    """Equal where the native form is: what the modules are, where parameters lie (some are read in place) and what they are."""
    modules = [(name, type(module)) for name, module in model.named_modules()]
    tensors = [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]
    return id(library), modules, [_place(tensor) for tensor in tensors], native.fingerprint(tensors)


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


_kept_of: WeakKeyDictionary[ConditionalUNet, _KeptForm] = WeakKeyDictionary()


@contextmanager
def frozen_form(model: ConditionalUNet) -> Iterator[FrozenUNet]:
    """The model's inference form, of its present weights, for the time of the context."""
    kept = _kept_of.setdefault(model, _KeptForm())
    # An evaluation's memory is that of one run at a time: another thread's, or one begun within on_step, gets its own.
    if not kept.lock.acquire(blocking=False):
        yield FrozenUNet(model)
        return
    try:
        yield kept.frozen(model)
    finally:
        kept.lock.release()


def release_form(model: ConditionalUNet) -> None:
    """Give back what is kept of a model, else as long as the model."""
    _kept_of.pop(model, None)
