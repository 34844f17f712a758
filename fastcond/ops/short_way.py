"""When a call in eager mode may go to the native CPU kernel at once, past PyTorch's dispatcher.

The dispatcher and a registered autograd formula take 15 microseconds a call and 30 with a gradient, as long as a small map's own
arithmetic. Where nothing wants to see the op itself - no compiler, no tracer, mode, transform or profiler, and plain tensors -
the kernel is called, and the call is differentiable as the op is. Everything else goes by the op, with the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastcond.ops import native

# What is asked of PyTorch below is not part of its public interface: where a version lacks any of it, all calls go by the op.
_ASKED = {
    torch._C: ("_len_torch_dispatch_stack", "_len_torch_function_stack", "_get_tracing_state"),
    getattr(torch._C, "_functorch", None): ("peek_interpreter_stack",),
    torch.autograd.profiler: ("_is_profiler_enabled",),
}
_CAN_ASK = all(hasattr(module, name) for module, names in _ASKED.items() for name in names)


def nobody_looks() -> bool:
    """Whether a call's tensors alone decide if it may take the short way."""
    return not (
        not _CAN_ASK
        or torch.compiler.is_compiling()
        or native.native is None
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
        or torch.autograd.profiler._is_profiler_enabled
    )


def is_short(*tensors: Tensor | None) -> bool:
    """Whether a call with these tensors may take the short way: where the dispatcher would come to the CPU kernel alone."""
    return nobody_looks() and native.native.are_plain(*tensors)  # type: ignore[union-attr]


def apply_of(function: type[torch.autograd.Function]) -> Any:
    """`function.apply`, for calls that may go the short way: without its own look for transforms and what is left of them."""
    return super(torch.autograd.Function, function).apply  # type: ignore[misc]
