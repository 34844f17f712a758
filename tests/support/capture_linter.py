"""The capture linter: runs a step on the CPU and fails on what a CUDA graph's capture forbids, or records and never updates.

A capture records kernels and their addresses. What is forbidden, and how it is found without a GPU:

- reading a value on the host (`.item()`, a branch on data, `.numpy()`, results whose shape depends on data): a torch-function
  mode sees the Python call, a dispatch mode the op;
- data from the host (`torch.tensor(...)`, factories without a device, `.to(device)`): on a CPU everything lies on the "host", so
  every tensor made from Python data, or without saying where, counts as one of the host;
- a tensor of the step that is needed after it (returned, or stored somewhere): its memory belongs to the graph's pool and is
  overwritten by the next replay; found by what is still alive after the step;
- memory that the graph was not told of: each tensor read or written is one of the static ones or made within the step;
- two runs that differ, in ops, in arguments or in addresses: then the host had a part in it, such as a row counter in Python.

What an opaque op of ours does inside is its device kernel's affair, and not looked at.
"""

from __future__ import annotations

import gc
import linecache
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_TORCH = os.path.dirname(os.path.abspath(torch.__file__))

_HOST_READS = {
    getattr(Tensor, name): f"Tensor.{name}"
    for name in ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__")
}
_HOST_BRANCH = {Tensor.__bool__: "a host branch on data"}
_FROM_PYTHON_DATA = {
    torch.tensor: "torch.tensor",
    torch.as_tensor: "torch.as_tensor",
    torch.asarray: "torch.asarray",
    torch.from_numpy: "torch.from_numpy",
    Tensor.new_tensor: "Tensor.new_tensor",
}
_FACTORIES = {
    factory: f"torch.{factory.__name__}"
    for factory in (torch.empty, torch.zeros, torch.ones, torch.full, torch.arange, torch.linspace, torch.eye)
}
_INDEX = torch.ops.aten.index.Tensor
_DYNAMIC = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


class CaptureViolation(AssertionError):
    """A step does what a capture forbids. The message names it, the op and the line."""


def lint_capture(step: Callable[[], Any], static_tensors: Callable[[], Mapping[str, Tensor]]) -> None:
    """Run `step` twice and fail on what no capture allows.

    Args:
        step: what is to be captured. It may write into the static tensors, and returns nothing but those.
        static_tensors: every tensor, by name, that the step may touch beyond those it makes; asked before and after each run.
    Raises: CaptureViolation.
    """
    addresses = _addresses(static_tensors())
    traces = []
    for run in (1, 2):
        trace = _Trace(static_tensors())
        with _PythonCalls(trace), trace:
            result = step()
        trace.check_result(result)
        del result
        trace.check_survivors()
        for name, address in _addresses(static_tensors()).items():
            if address != addresses.get(name):
                raise CaptureViolation(f"run {run} moved static tensor {name}: it was {addresses.get(name)} and is {address}")
        traces.append(trace.record)
    for number, (first, second) in enumerate(zip(*traces, strict=False)):
        if first[:2] != second[:2]:
            was, now = (f"{name}{operands} at {line}" for name, operands, line in (first, second))
            raise CaptureViolation(f"op {number} differs between two runs: {was}, then {now}")
    if len(traces[0]) != len(traces[1]):
        raise CaptureViolation(f"the first run is {len(traces[0])} ops, the second {len(traces[1])}")


class _Trace(TorchDispatchMode):
    """Sees every op, checks its operands and remembers what it did."""

    def __init__(self, static: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._static = {_storage(tensor): name for name, tensor in static.items()}
        # The weak reference keeps a storage's number from being given to another one.
        self._made: dict[int, tuple[StorageWeakRef, str, Line]] = {}
        self.record: list[tuple[str, str, Line]] = []
        self.inside_kernel = False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs, name, line = kwargs or {}, str(func), calling_line()
        if name.startswith("aten._local_scalar_dense"):
            raise CaptureViolation(f"reads a value on the host: {name} at {line}")
        if any(tag in func.tags for tag in _DYNAMIC) and (func is not _INDEX or _selects_by_mask(args[1])):
            raise CaptureViolation(f"the shape or value of its result depends on data, which needs the host: {name} at {line}")
        operands = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        for tensor in operands:
            if _storage(tensor) not in self._static and _storage(tensor) not in self._made:
                found = f"a {tensor.dtype} {list(tensor.shape)} tensor"
                raise CaptureViolation(f"touches {found} that is neither static nor made in the step: {name} at {line}")
        self.record.append((name, self._describe((args, kwargs)), line))
        self.inside_kernel = True
        try:
            result = func(*args, **kwargs)
        finally:
            self.inside_kernel = False
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and _storage(tensor) not in self._static and _storage(tensor) not in self._made:
                self._made[_storage(tensor)] = (StorageWeakRef(tensor.untyped_storage()), name, line)
        return result

    def _describe(self, arguments: Any) -> str:
        """Arguments in words: addresses of static tensors, shapes of others, values of what is no tensor."""

        def word(value: Any) -> str:
            if not isinstance(value, Tensor):
                return repr(value)
            known = self._static.get(_storage(value))
            place = "temporary" if known is None else f"{known}+{value.storage_offset()}"
            return f"{place}:{value.dtype}{list(value.shape)}/{list(value.stride())}"

        return f"({', '.join(word(value) for value in tree_leaves(arguments))})"

    def check_result(self, result: Any) -> None:
        """Only static tensors may be returned."""
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and _storage(tensor) not in self._static:
                _, name, line = self._made[_storage(tensor)]
                raise CaptureViolation(f"returns a tensor that the step allocated: {name} at {line}")

    def check_survivors(self) -> None:
        """Nothing that the step made may live on."""
        gc.collect()
        for reference, name, line in self._made.values():
            if not reference.expired():
                raise CaptureViolation(f"an allocation escapes the step, stored somewhere: {name} at {line}")


class _PythonCalls(TorchFunctionMode):
    """Sees calls that dispatch no op on a CPU, or that would be copies if the step ran on a GPU."""

    def __init__(self, trace: _Trace) -> None:
        super().__init__()
        self._trace = trace

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self._trace.inside_kernel:
            line = calling_line()
            if func in _HOST_READS:
                what = _HOST_BRANCH.get(func, "reads a value on the host")
                raise CaptureViolation(f"{what}: {_HOST_READS[func]} at {line}")
            if func in _FROM_PYTHON_DATA:
                raise CaptureViolation(f"brings data from the host: {_FROM_PYTHON_DATA[func]} at {line}")
            if func in _FACTORIES and kwargs.get("device") is None and "out" not in kwargs:
                raise CaptureViolation(f"makes a tensor on the host, for want of device=: {_FACTORIES[func]} at {line}")
            if func in (Tensor.to, Tensor.cuda) and _names_a_device(func, args, kwargs):
                raise CaptureViolation(f"copies between devices: {resolve_name(func)} at {line}")
        return func(*args, **kwargs)


def _names_a_device(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    given = [*args[1:], *kwargs.values()]
    return func is Tensor.cuda or any(isinstance(value, str | torch.device | Tensor) for value in given)


class Line(NamedTuple):
    """A line of source, which is read when it is shown."""

    file: str
    number: int

    def __str__(self) -> str:
        return f"{os.path.basename(self.file)}:{self.number}: {linecache.getline(self.file, self.number).strip()}"


def calling_line() -> Line:
    """The innermost frame that is neither torch's nor this file's."""
    frame = sys._getframe(1)
    while frame.f_back is not None and (frame.f_code.co_filename == __file__ or frame.f_code.co_filename.startswith(_TORCH)):
        frame = frame.f_back
    return Line(frame.f_code.co_filename, frame.f_lineno)


def _selects_by_mask(indices: Any) -> bool:
    """Whether one of aten.index's operands is a mask, whose number of results is data."""
    return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _addresses(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, tuple[int, ...], tuple[int, ...]]]:
    return {name: (tensor.data_ptr(), tuple(tensor.shape), tensor.stride()) for name, tensor in tensors.items()}
