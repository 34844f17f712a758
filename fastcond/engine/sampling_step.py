"""One row of a run as a function over buffers that stay where they are, so that a CUDA graph can hold it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastcond.diffusion import StepTable
from fastcond.engine.composed_step import composed_step, needs_composition
from fastcond.engine.frozen_unet import Denoiser
from fastcond.ops import diffusion_step, philox_normal
from fastcond.ops.philox import INITIAL_NOISE


class SamplingStep:
    """Network, diffusion_step, next row: everything that changes is in the buffers, the row index too.

    A call reads and writes tensors of the model, the table and this object alone, at addresses that do not change, brings nothing
    to the host and returns nothing. So a call is the same work whichever row it is, and a recorded one can be replayed.

    Args:
        denoiser: of 2B images, those without a condition second. table: on the model's device.
        image_shape: (C, H, W). seeds: int64 [B, 2], (run seed, image index). guidance: float32 [B], w of each image.
        guidance_rescale, dynamic_threshold, cfg_plus_plus: as `composed_step`'s; without them a row is one fused op.
        noise: float32 [B, C, H, W], read by `start` and by each row, where it is not philox's; the caller fills it in between.
    Attributes:
        x: float32 [B, C, H, W], the sample; x_0: the same of the last prediction, which is also the history.
        row: int64 [1], the row that the next call executes.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        table: StepTable,
        image_shape: tuple[int, int, int],
        *,
        seeds: Tensor,
        guidance: Tensor,
        guidance_rescale: float = 0.0,
        dynamic_threshold: float | None = None,
        noise: Tensor | None = None,
        cfg_plus_plus: bool = False,
    ) -> None:
        self._denoiser, self._table = denoiser, table
        self._advance: Callable[..., Any] = diffusion_step
        self._noise = noise
        corrected = guidance_rescale or dynamic_threshold is not None or cfg_plus_plus
        if corrected or noise is not None or needs_composition(table):
            self._advance = partial(
                composed_step,
                guidance_rescale=guidance_rescale,
                percentile=dynamic_threshold,
                noise=noise,
                cfg_plus_plus=cfg_plus_plus,
            )
        self._seeds, self._guidance = seeds, guidance
        batch = len(seeds)
        # Both halves of the guided batch live in one buffer, which every step fills anew; x is its first half.
        both = (2 * batch, *image_shape)
        self._both = torch.empty(both, dtype=torch.float32, device=seeds.device, memory_format=torch.channels_last)
        self.x = self._both[:batch]
        self.x_0 = torch.empty_like(self.x)
        self.row = torch.empty(1, dtype=torch.int64, device=seeds.device)
        self.start()

    def start(self) -> None:
        """Noise in x, nothing in the history, row 0."""
        noise = philox_normal(self._seeds, self.x.shape[1:], stream=INITIAL_NOISE) if self._noise is None else self._noise
        if self._table.initial_scale != 1:
            noise = noise * self._table.initial_scale
        for half in self._both.chunk(2):
            half.copy_(noise)
        self.x_0.zero_()
        self.row.zero_()

    @torch.no_grad()
    def __call__(self, guided: bool) -> None:
        """Execute one row: with guidance, both halves of the batch; without, the conditional one alone."""
        out_uncond = None
        if guided:
            out_cond, out_uncond = self._denoiser(self._both, self.row, copies=2).chunk(2)
        else:
            out_cond = self._denoiser(self.x, self.row)
        if self._advance is diffusion_step:  # of a network that predicts a variance too, which this table does not ask for
            channels = self.x.shape[1]
            out_cond, out_uncond = out_cond[:, :channels], None if out_uncond is None else out_uncond[:, :channels]
        self._advance(
            self.x,
            out_cond,
            out_uncond,
            self._table,
            self.row,
            seeds=self._seeds,
            guidance=self._guidance,
            history=self.x_0 if self._table.keeps_history else None,
            out=self._both,
            out_x_0=self.x_0,
        )
        self.row.add_(1)

    def static_tensors(self) -> dict[str, Tensor]:
        """Every tensor that a call may touch beyond those it makes for itself, by name."""
        own = {"x": self.x, "both": self._both, "x_0": self.x_0, "row": self.row}
        given = {"seeds": self._seeds, "guidance": self._guidance} | ({} if self._noise is None else {"noise": self._noise})
        table = {"table.coefficients": self._table.coefficients, "table.timesteps": self._table.timesteps}
        if self._table.learned_noise is not None:
            table["table.learned_noise"] = self._table.learned_noise.coefficients
        return {**own, **given, **table, **self._denoiser.static_tensors()}
