"""The compiled library `fastcond._native`, or None where it was not built.

Kernels read `native.native` at each call, so a test may set it to None and compare the two paths in one process.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from typing import Any

import torch  # first: the library then shares the OpenMP runtime that torch has loaded
from torch import Tensor
from torch.nn import Parameter

INTERFACE = 7  # kernels/bindings.cpp's: what these sources call


def _load() -> Any | None:
    """Import the library. Not built gives None; built but broken, or of other sources, raises ImportError, not to pass unseen."""
    try:
        library = importlib.import_module("fastcond._native")
    except ModuleNotFoundError as error:
        if error.name != "fastcond._native":
            raise
        return None
    require_interface(library)
    if not hasattr(Tensor, "__dlpack_c_exchange_api__") or not library.read_tensors_of(Tensor, Parameter):
        warnings.warn(
            f"PyTorch {torch.__version__} lacks the table of DLPack 1 that native kernels read tensors by, so they do not run "
            "and a CPU is slow; install a PyTorch from 2.11 on that has it",
            stacklevel=2,
        )
        return None
    return library


def require_interface(library: Any) -> None:
    """Raises: ImportError for a library that reads arguments otherwise than these sources mean them."""
    found = getattr(library, "INTERFACE", 0)
    if found != INTERFACE:
        raise ImportError(
            f"the native library was built of other sources (interface {found}, {INTERFACE} is needed); build it again: "
            "pip install ."
        )


native: Any | None = _load()


def floats(shape: Sequence[int] | int, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    """New float32 memory of the CPU for a kernel to write, whatever the default dtype and device are."""
    return torch.empty(shape, dtype=torch.float32, device="cpu", memory_format=memory_format)


def keep_freed_memory() -> bool:
    """Let the process keep the memory that tensors on the CPU free, for the next ones; whether the system can be told to.

    For a loop that asks for the same maps again and again: memory that goes back to the system comes as pages to be zeroed,
    a fault each. It holds for the whole process, whose memory does not shrink any more.
    """
    return native is not None and bool(native.keep_freed_memory())


def fingerprint(tensors: Sequence[Tensor]) -> int:
    """A number that says whether tensors on the CPU have changed, bit for bit; their layout is no part of it.

    A change of one float32 always gives another number, any other change does but for one case in 2^64. It needs the library.
    """
    assert native is not None, "ask whether there is a library first"
    # In any order, as long as it is the memory's: a layout without gaps is read as it lies.
    dense = [tensor if _is_dense(tensor) else tensor.contiguous() for tensor in tensors]
    sizes = [tensor.numel() * tensor.element_size() for tensor in dense]
    return int(native.fingerprint([tensor.data_ptr() for tensor in dense], sizes, torch.get_num_threads()))


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements lie in memory without gaps, in whatever order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
