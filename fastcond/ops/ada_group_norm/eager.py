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
_KEYS = _keys()
with torch.inference_mode():
    _INFERENCE_KEYS = _keys()


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
    keys, device = torch._C._dispatch_keys(x), x.device
    if type(x) not in _PLAIN or keys not in (_KEYS, _INFERENCE_KEYS):
        return False
    return all(other is None or (type(other) in _PLAIN and other.device == device) for other in others)


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
                return _Differentiable.apply(x, *operands, channels_last, num_groups, eps, silu)
    return cpu.normalise(x, channels_last, operands, num_groups, eps, silu, None, None)


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *others: Any) -> Tensor:
        scale, shift, weight, bias, channels_last, num_groups, eps, silu = others
        mean, rstd = cpu.statistics(x.shape[0], num_groups)
        y = cpu.normalise(x, channels_last, (scale, shift, weight, bias), num_groups, eps, silu, mean, rstd)
        ctx.save_for_backward(x, scale, shift, weight, bias, mean, rstd)
        ctx.num_groups, ctx.silu = num_groups, silu
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, weight, bias, mean, rstd = ctx.saved_tensors
        needed = list(ctx.needs_input_grad[:5])
        grads: Any
        # Whoever packed what was saved may have unpacked it in another layout. The op refuses a second derivative.
        channels_last = layout.channels_last(x)
        if channels_last is None or torch.is_grad_enabled() or not is_short(dy, x, mean, rstd):
            grads = ada_group_norm_backward(dy, x, scale, shift, weight, bias, mean, rstd, ctx.num_groups, ctx.silu, needed)
            grads = [grad if need else None for grad, need in zip(grads, needed, strict=True)]
        else:
            operands = (scale, shift, weight, bias)
            grads = cpu.differentiate(dy, x, channels_last, operands, mean, rstd, ctx.num_groups, ctx.silu, needed)
        return *grads, None, None, None, None
