"""A network in the form that a GPU runs: weights of its own in 16 bits and channels_last, the walk over them compiled.

The weights are copies, so what a CUDA graph has recorded stays where it is whatever becomes of the model's own: trained on in
place, assigned anew or loaded from a file. They are copied before every batch of images, all of them, which moves 6 bytes a
parameter. To copy only what changed would need to know it, and PyTorch's version counters do not: `weight.data.add_(...)` leaves
them alone.
"""

from __future__ import annotations

import copy
import inspect
import os
import shutil
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastcond.config import PRECISIONS
from fastcond.engine.network_walk import Walk
from fastcond.engine.torch_operations import TorchOperations
from fastcond.nn import ConditionalUNet

Evaluate = Callable[[Tensor, Tensor], Tensor]

_WALKED = ("conv_in.", "down_blocks.", "mid_block.", "up_blocks.", "conv_norm_out.", "conv_out.")


class CompiledUNet:
    """(x_t, columns of a `ConditioningTable`) -> output: the inference form of a `ConditionalUNet` for a GPU.

    Convolutions and attention are in `dtype`, and so are the maps between them; the norms' parameters, scales and shifts stay as
    they are, and the norms' arithmetic is float32 in any case.

    Args:
        model: not changed, and not kept alive. dtype: of the copied weights, bfloat16 or float32.
        compiled: whether `torch.compile` makes one graph of the walk. Its batch may have any size: all sizes above 1 share one
            compilation. Weights are inputs of the graph, not constants folded into it, so that they can be copied anew.
    """

    def __init__(self, model: ConditionalUNet, dtype: torch.dtype, *, compiled: bool) -> None:
        self.dtype = dtype
        self._signature = _signature(model)
        own: ConditionalUNet = copy.deepcopy(model).requires_grad_(False).eval()
        walk = Walk(own)
        for module in own.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                for parameter in module.parameters(recurse=False):
                    memory_format = torch.channels_last if parameter.dim() == 4 else torch.contiguous_format
                    parameter.data = parameter.detach().to(dtype).contiguous(memory_format=memory_format)
        self.config, self.width = model.config, sum(site.width for site in walk.sites)
        # The embedding is in the table, not in the loop.
        sites = tuple(f"{site.name}." for site in walk.sites)
        self._own = {name: value for name, value in _tensors(own) if name.startswith(_WALKED) and not name.startswith(sites)}
        for name, parameter in own.named_parameters():
            if name not in self._own:
                parameter.data = parameter.new_empty(0)

        def evaluate(x_t: Tensor, columns: Tensor) -> Tensor:
            return walk(TorchOperations(columns), x_t.to(dtype))

        self._plain: Evaluate = evaluate
        self._compiled: Evaluate | None = compile_walk(evaluate) if compiled else None

    @property
    def is_compiled(self) -> bool:
        """Whether calls run compiled code; False also after a compilation that failed."""
        return self._compiled is not None

    def fits(self, model: ConditionalUNet) -> bool:
        """Whether `refresh` can take this model's weights: the same kinds of modules, with tensors of the same shapes."""
        return _signature(model) == self._signature

    @torch.no_grad()
    def refresh(self, model: ConditionalUNet) -> None:
        """Copy the model's weights, which `fits`, into place."""
        # One foreach call a group: it falls back to a copy a tensor where dtypes or strides within a list differ.
        groups = defaultdict[Any, tuple[list[Tensor], list[Tensor]]](lambda: ([], []))
        for name, value in _tensors(model):
            if (kept := self._own.get(name)) is not None:
                into, source = groups[kept.dtype, value.dtype, kept.stride() == value.stride()]
                into.append(kept)
                source.append(value)
        for into, source in groups.values():
            torch._foreach_copy_(into, source)

    def __call__(self, x_t: Tensor, columns: Tensor) -> Tensor:
        """x_t float32 [N, C, H, W], columns [N, all columns] -> [N, out_channels, H, W] in `dtype`, under any autocast."""
        with torch.autocast(x_t.device.type, enabled=False):
            return self._evaluate(x_t, columns)

    def _evaluate(self, x_t: Tensor, columns: Tensor) -> Tensor:
        if self._compiled is None:
            return self._plain(x_t, columns)
        for operand in (x_t, columns):
            torch._dynamo.maybe_mark_dynamic(operand, 0)
        try:
            return self._compiled(x_t, columns)
        except RuntimeError as error:
            if not _is_of_the_compiler(error):
                raise
            reason = " ".join(str(error).split())[:300]
            warnings.warn(f"torch.compile failed ({reason}); sampling goes on without it", stacklevel=2)
            self._compiled = None
            return self._plain(x_t, columns)

    def static_tensors(self) -> dict[str, Tensor]:
        """The weights that a call reads, by name."""
        return {f"network.{name}": value for name, value in self._own.items()}


def compile_walk(evaluate: Evaluate) -> Evaluate:
    """`evaluate` as one graph of Inductor's, for any batch size above 1 that its operands are marked for.

    Without Inductor's own CUDA graphs, since whole steps are recorded, and without its autotuning by trial, which a recording
    would not survive; the choices that it does make by trial it makes in the first call.
    """
    # Each network has the limit of recompilations to itself, where PyTorch knows how (2.13).
    isolated: dict[str, Any] = {"isolate_recompiles": True}
    if "isolate_recompiles" not in inspect.signature(torch.compile).parameters:
        isolated = {}
    options: dict[str, Any] = {"triton.cudagraphs": False, "max_autotune": False, "freezing": False}
    return torch.compile(evaluate, fullgraph=True, dynamic=False, options=options, **isolated)


def choose_dtype(precision: str | None, model: nn.Module) -> torch.dtype:
    """What a network computes in: `precision`, or by default bfloat16 on a GPU that has it and float32 elsewhere.

    Raises: ValueError for a name that is none, or for bf16 on a CPU, where float32 is faster and what the kernels are made for.
    """
    device = next(model.parameters()).device
    if precision not in (None, *PRECISIONS):
        raise ValueError(f"precision is {precision!r}; choose one of {', '.join(PRECISIONS)}")
    if device.type == "cpu" and precision == "bf16":
        raise ValueError("precision is 'bf16', which is for GPUs; on a CPU leave it out or give 'fp32'")
    if precision is None:
        precision = "bf16" if has_bf16(device) else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def has_bf16(device: torch.device) -> bool:
    """Whether the device is a GPU that computes in bfloat16 itself; older GPUs emulate it, slower than float32."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def has_c_compiler() -> bool:
    """torch.compile's Triton kernels are launched through a small C module that is built on the spot."""
    return any(shutil.which(name) for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name)


def _is_of_the_compiler(error: RuntimeError) -> bool:
    """Whether it was compiling that failed, and not what was compiled."""
    from torch._dynamo.exc import TorchDynamoException  # here: it is loaded by now, and takes long where it is not

    return isinstance(error, TorchDynamoException)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _signature(model: nn.Module) -> tuple[Any, ...]:
    """What must stay as it is for copies of the weights to stand for the model: its modules and its tensors' shapes and place."""
    modules = tuple((name, type(module)) for name, module in model.named_modules())
    tensors = tuple((name, value.shape, value.dtype, value.device) for name, value in _tensors(model))
    return modules, tensors


__all__ = ["CompiledUNet", "choose_dtype", "compile_walk", "has_bf16", "has_c_compiler"]
