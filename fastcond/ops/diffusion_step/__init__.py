"""One step of any sampler: guidance, x_0 prediction, clipping, update and noise in one pass over memory."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from fastcond.ops import short_way
from fastcond.ops.diffusion_step import cpu
from fastcond.ops.diffusion_step.op import diffusion_step_functional, diffusion_step_into


class Table(Protocol):
    """What a step reads of a sampler: `fastcond.diffusion.StepTable` is one."""

    @property
    def coefficients(self) -> Tensor:
        """float32 [N, 8]: p_x, p_o, c, k_x, k_0, k_o, k_h, k_n of every row."""
        ...

    @property
    def keeps_history(self) -> bool:
        """Whether a row reads the x_0 of the row before."""
        ...

    @property
    def draws_noise(self) -> bool:
        """Whether any row adds noise."""
        ...


def diffusion_step(
    x: Tensor,
    out_cond: Tensor,
    out_uncond: Tensor | None,
    table: Table,
    row: Tensor,
    *,
    seeds: Tensor,
    guidance: float | Tensor = 1.0,
    history: Tensor | None = None,
    out: Tensor | None = None,
    out_x_0: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Advance x_t by one row of a sampler's StepTable, with classifier-free guidance and noise, in one pass.

        g  = out_u + w (out_c - out_u),    x0 = clamp(p_x x + p_o g, -c, c),    x' = k_x x + k_0 x0 + k_o g + k_h h + k_n z

    Args:
        x: current sample x_t, float32 [B, C, H, W], contiguous or channels_last.
        out_cond, out_uncond: the network's outputs, any float dtype, x's shape; out_uncond None where guidance is 1.
        table: StepTable of N rows on x's device.
        row: int64 [1], on x's device, in [0, N).
        seeds: int64 [B, 2], (run seed, image index); the noise depends on nothing else but row and element.
        guidance: w, or float32 [B] with one w an image; 1 is off. Not read where out_uncond is None.
        history: float32, x's shape, the x_0 of the previous row; required where table.keeps_history.
        out: float32 buffer for the result, of x's shape or with both halves of a guided batch, [2B, C, H, W]; may share x's
            memory.
        out_x_0: float32 buffer for the x_0 prediction, x's shape; may be `history`. Needed with `out`.
    Returns: (x of the next row, x_0 prediction), float32, in x's memory format; with `out` the two buffers.
    Raises: ValueError for a shape, dtype or device that does not fit, naming the argument and what was found.
    Source: Ho et al. 2020 eq. 7; Ho & Salimans 2022 eq. 6 in the form u + w(c - u).
    """
    _require_float32_like("x", x, x)
    batch = x.shape[0]
    for name, value in (("out_cond", out_cond), ("out_uncond", out_uncond)):
        if value is not None and (value.shape != x.shape or not value.is_floating_point()):
            raise ValueError(
                f"{name} is {value.dtype} {list(value.shape)}; a float tensor of x's shape {list(x.shape)} is needed"
            )
    if table.coefficients.dtype != torch.float32 or table.coefficients.dim() != 2 or table.coefficients.shape[1] != 8:
        found = f"{table.coefficients.dtype} {list(table.coefficients.shape)}"
        raise ValueError(f"table.coefficients is {found}; float32 [N, 8] is needed")
    if row.dtype != torch.int64 or row.shape != (1,):
        raise ValueError(f"row is {row.dtype} {list(row.shape)}; int64 [1] is needed")
    if seeds.dtype != torch.int64 or seeds.shape != (batch, 2):
        raise ValueError(f"seeds is {seeds.dtype} {list(seeds.shape)}; int64 [{batch}, 2] is needed")
    scales = guidance if isinstance(guidance, Tensor) else None
    others = (out_cond, out_uncond, table.coefficients, row, seeds, scales, history, out, out_x_0)
    # Past the dispatcher, and no need to ask about devices, where all are plain tensors of the CPU.
    short = short_way.is_short(x, *others)
    if not short:
        _require_one_device(x, others)
    if table.keeps_history:
        if history is None:
            raise ValueError("this sampler reads the x_0 of the row before; pass it as history (zeros at row 0)")
        _require_float32_like("history", history, x)
    else:
        history = None
    w = None
    if out_uncond is not None:
        w = guidance if isinstance(guidance, Tensor) else torch.full((batch,), guidance, dtype=torch.float32, device=x.device)
        if w.dtype != torch.float32 or w.shape != (batch,):
            raise ValueError(f"guidance is {w.dtype} {list(w.shape)}; a number or float32 [{batch}] is needed")
    operands = (x, out_cond, out_uncond, history, table.coefficients, row, w, seeds, table.draws_noise)
    if out is None:
        stepped, x_0 = diffusion_step_functional(*operands)
        return stepped, x_0
    if out.dtype != torch.float32 or out.shape[1:] != x.shape[1:] or out.shape[0] not in (batch, 2 * batch):
        raise ValueError(
            f"out is {out.dtype} {list(out.shape)}; float32 of x's shape {list(x.shape)} or twice its batch is needed"
        )
    if out_x_0 is None:
        raise ValueError("out is given without out_x_0; pass a buffer of x's shape for the x_0 prediction too")
    _require_float32_like("out_x_0", out_x_0, x)
    if torch.is_grad_enabled() and any(value is not None and value.requires_grad for value in operands[:4]):
        raise NotImplementedError("diffusion_step has no gradient; sample under torch.no_grad()")
    step_into = cpu.step_into if short else diffusion_step_into
    step_into(*operands, out, out_x_0)
    if not torch.compiler.is_compiling():
        # So that autograd, if it kept a buffer of what was here before for a backward, finds that out.
        torch.autograd.graph.increment_version((out, out_x_0))
    return out, out_x_0


def _require_one_device(x: Tensor, others: tuple[Tensor | None, ...]) -> None:
    names = ("out_cond", "out_uncond", "table.coefficients", "row", "seeds", "guidance", "history", "out", "out_x_0")
    for name, other in zip(names, others, strict=True):
        if other is not None and other.device != x.device:
            raise ValueError(f"{name} is on {other.device} and x on {x.device}; move it there")


def _require_float32_like(name: str, value: Tensor, x: Tensor) -> None:
    if value.dtype != torch.float32 or value.shape != x.shape:
        raise ValueError(f"{name} is {value.dtype} {list(value.shape)}; float32 {list(x.shape)} is needed")


__all__ = ["Table", "diffusion_step"]
