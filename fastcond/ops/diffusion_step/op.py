"""Registration of `fastcond::diffusion_step` and its writing form `fastcond::diffusion_step_into`.

Sampling needs no gradient, so neither has an autograd formula: asking for one is an error, not a silent zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastcond.ops import gpu
from fastcond.ops.diffusion_step import cpu, cuda, reference

_OPERANDS = (
    "Tensor x, Tensor out_cond, Tensor? out_uncond, Tensor? history, Tensor coefficients, Tensor row, Tensor? guidance, "
    "Tensor seeds, bool draws_noise"
)
torch.library.define("fastcond::diffusion_step", f"({_OPERANDS}) -> (Tensor x_next, Tensor x_0)")
torch.library.define("fastcond::diffusion_step_into", f"({_OPERANDS}, Tensor(a!) x_next, Tensor(b!) x_0) -> ()")
torch.library.impl("fastcond::diffusion_step", "default", reference.step)
torch.library.impl("fastcond::diffusion_step_into", "default", reference.step_into)
torch.library.impl("fastcond::diffusion_step", "cpu", cpu.step)
torch.library.impl("fastcond::diffusion_step_into", "cpu", cpu.step_into)


def _for_gpu() -> Any:
    return gpu.launchers("fastcond.ops.diffusion_step.triton_kernels") or cuda


@torch.library.impl("fastcond::diffusion_step", "cuda")
def _step_cuda(x: Tensor, *operands: Any) -> tuple[Tensor, Tensor]:
    with torch.cuda.device(x.device):
        return _for_gpu().step(x, *operands)


@torch.library.impl("fastcond::diffusion_step_into", "cuda")
def _step_into_cuda(x: Tensor, *operands: Any) -> None:
    with torch.cuda.device(x.device):
        _for_gpu().step_into(x, *operands)


@torch.library.register_fake("fastcond::diffusion_step")
def _fake(x: Tensor, *operands: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


@torch.library.register_fake("fastcond::diffusion_step_into")
def _fake_into(x: Tensor, *operands: Any) -> None:
    return None


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    pass


def _no_gradient(ctx: Any, *grads: Tensor | None) -> None:
    raise NotImplementedError("diffusion_step has no gradient; sample under torch.no_grad()")


torch.library.register_autograd("fastcond::diffusion_step", _no_gradient, setup_context=_setup_context)

# Bound once: looking an overload up costs more than many a small kernel.
diffusion_step_functional = torch.ops.fastcond.diffusion_step.default
diffusion_step_into = torch.ops.fastcond.diffusion_step_into.default
