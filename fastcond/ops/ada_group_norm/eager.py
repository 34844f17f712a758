"""The short way to the native CPU kernel in eager mode.

PyTorch's dispatcher and a registered autograd formula take 15 microseconds a call and 30 with a gradient, as long as a small
map's own arithmetic. Where nothing wants to see the op itself - no compiler, no tracer, mode, transform or profiler, and
plain tensors - the kernel is called at once. Everything else goes by the op, which gives the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from fastcond.ops import native
from fastcond.ops.ada_group_norm import cpu, layout
from fastcond.ops.ada_group_norm.op import ada_group_norm_backward

_PLAIN = (Tensor, Parameter)


# What is asked of PyTorch below is not part of its public interface: where a version lacks any of it, all calls go by the op.
_ASKED = {
    torch._C: ("_dispatch_keys", "_len_torch_dispatch_stack", "_len_torch_function_stack", "_get_tracing_state"),
    getattr(torch._C, "_functorch", None): ("peek_interpreter_stack",),
    torch.autograd.profiler: ("_is_profiler_enabled",),
}
_CAN_ASK = all(hasattr(module, name) for module, names in _ASKED.items() for name in names)


def _keys() -> Any:
    return torch._C._dispatch_keys(torch.empty(0, device="cpu")) if _CAN_ASK else None


# What PyTorch's dispatcher goes by: the keys of a dense tensor of the CPU, and of one made in inference mode.
with torch.inference_mode():
    _INFERENCE_KEYS = _keys()
_KEYS = (_keys(), _INFERENCE_KEYS)


def is_short(x: Tensor, *others: Tensor | None) -> bool:
    """Whether a call with these tensors may take the short way: where the dispatcher would come to the CPU kernel alone."""
    if (
        not _CAN_ASK
        or torch.compiler.is_compiling()
        or native.native is None
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
        or torch.autograd.profiler._is_profiler_enabled
    ):
        return False
    if type(x) not in _PLAIN or torch._C._dispatch_keys(x) not in _KEYS:
        return False
    device = x.device
    for other in others:  # noqa: SIM110  (a generator takes longer than all of it)
        if other is not None and (type(other) not in _PLAIN or other.device != device):
            return False
    return True


def ada_group_norm(x: Tensor, operands: tuple[Tensor | None, ...], num_groups: int, eps: float, silu: bool) -> Tensor | None:
    """y, differentiable as the op is, of operands whose shapes were checked; None where the op has to be called."""
    if x.dtype not in cpu.STORED or not is_short(x, *operands) or x.numel() == 0:
        return None
    channels_last = layout.channels_last(x)
    if channels_last is None:
        return None
    if torch.is_grad_enabled():
        for tensor in (x, *operands):
            if tensor is not None and tensor.requires_grad:
                return _Differentiable.apply(x, *operands, (channels_last, num_groups, eps, silu))
    return cpu.normalise(x, channels_last, operands, num_groups, eps, silu)


def _addresses(statistics: Tensor) -> tuple[int, int]:
    """Of mean [2, B, G] and rstd [B, G] in [3, B, G], float32."""
    start = statistics.data_ptr()
    return start, start + 2 * statistics.stride(0) * 4


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *others: Any) -> Tensor:
        *operands, (channels_last, ctx.num_groups, eps, ctx.silu) = others
        # Neither an input nor an output, so no matter of save_for_backward.
        ctx.statistics = x.new_empty(3, x.shape[0], ctx.num_groups, dtype=torch.float32)
        ctx.save_for_backward(x, *operands)
        statistics = _addresses(ctx.statistics)
        return cpu.normalise(x, channels_last, tuple(operands), ctx.num_groups, eps, ctx.silu, statistics)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, *operands = ctx.saved_tensors
        needed, statistics = ctx.needs_input_grad[:5], ctx.statistics
        # Whoever packed what was saved may have unpacked it in another layout. The op refuses a second derivative.
        channels_last = layout.channels_last(x)
        if channels_last is None or torch.is_grad_enabled() or not is_short(dy, x):
            given = (dy, x, *operands, statistics[:2], statistics[2], ctx.num_groups, ctx.silu, list(needed))
            grads = [grad if need else None for grad, need in zip(ada_group_norm_backward(*given), needed, strict=True)]
            return *grads, None
        kept = _addresses(statistics)
        grads = cpu.differentiate(dy, x, channels_last, tuple(operands), kept, ctx.num_groups, ctx.silu, needed)
        return *grads, None
