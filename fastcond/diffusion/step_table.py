"""A sampler is a table: one row a step, eight coefficients a row, executed by `fastcond.ops.diffusion_step`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastcond.diffusion.thresholding import DynamicThreshold

COLUMNS = ("p_x", "p_o", "c", "k_x", "k_0", "k_o", "k_h", "k_n")


@dataclass(frozen=True)
class LearnedNoise:
    """Noise whose size is read off the second C channels v of the network's output.

    coefficients: float32 [N, 3], on the table's device, columns n, l_0, l_1: where n is 1 the standard deviation of the noise
        is exp(l_0 + l_1 v), or sqrt(v) where `is_variance`: v is the variance itself, as diffusers' "learned" has it. Where n is
        0 the row has none.
    Source: Nichol & Dhariwal 2021, eq. 15: v in [-1, 1] interpolates between log(posterior variance) and log(beta).
    """

    coefficients: Tensor
    is_variance: bool = False

    def std(self, v: Tensor, row: Tensor) -> Tensor:
        """The standard deviation, like v, at the row of the table that int64 [1] names. NaN for a negative variance."""
        n, l_0, l_1 = self.coefficients.index_select(0, row)[0].unbind()
        # A row without noise must not get its NaN either.
        return torch.where(n > 0, v.sqrt() if self.is_variance else torch.exp(l_0 + l_1 * v), 0.0)


@dataclass(frozen=True)
class StepTable:
    """The whole of a sampling run, apart from the network.

        x0 = clamp(p_x x + p_o g, -c, c),    x' = k_x x + k_0 x0 + k_o g + k_h h + k_n z

    Attributes:
        coefficients: float32 [N, 8], columns in the order of `COLUMNS`; built in fp64.
        timesteps: int64 [N], or float32 [N] where a sampler visits what lies between; what the network is told at each row,
            noisiest first.
        keeps_history: rows read h, the x0 of the row before. draws_noise: some row's k_n is not 0.
        draws_in_vain: diffusers' scheduler draws noise for the rows of size 0 too; `fastcond.engine.torch_noise` does as it does.
        initial_scale: the standard deviation of the first x; 1 but for samplers that follow diffusers in sigma.
        threshold: dynamic thresholding in place of the clamp.
        learned_noise: the noise's size comes from the network, whose output then has 2C channels, and not from k_n, which is 0.
    The last two need more than a row's arithmetic: `fastcond.engine` composes such a step.
    """

    coefficients: Tensor
    timesteps: Tensor
    keeps_history: bool = False
    draws_noise: bool = False
    initial_scale: float = 1.0
    threshold: DynamicThreshold | None = None
    learned_noise: LearnedNoise | None = None
    draws_in_vain: bool = False

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.timesteps)

    @classmethod
    def from_columns(cls, timesteps: Tensor, columns: Mapping[str, Tensor], **others: Any) -> StepTable:
        """Build a table from float64 [N] columns; a column that is absent is 0, an absent c is infinite (no clamping).

        others: initial_scale, threshold, learned_noise, draws_in_vain.
        Raises: ValueError for an unknown column, a c that is not positive, or a value that is not a number.
        """
        rows = len(timesteps)
        table = torch.zeros(rows, len(COLUMNS), dtype=torch.float64)
        table[:, COLUMNS.index("c")] = torch.inf
        for name, column in columns.items():
            if name not in COLUMNS:
                raise ValueError(f"unknown column {name!r}; a step table has {', '.join(COLUMNS)}")
            table[:, COLUMNS.index(name)] = column
        if bool((table[:, COLUMNS.index("c")] <= 0).any()):
            raise ValueError(f"clip is {float(table[:, COLUMNS.index('c')].min()):g}; it must be positive (inf turns it off)")
        if bool(table.isnan().any()):
            raise ValueError("a coefficient of the step table is not a number; the schedule does not suit this sampler")
        return cls(
            table.float(),
            timesteps,
            keeps_history=bool((table[:, COLUMNS.index("k_h")] != 0).any()),
            draws_noise=bool((table[:, COLUMNS.index("k_n")] != 0).any()),
            **others,
        )

    def noisy_rows(self) -> list[bool]:
        """For which rows noise is drawn: those that add some, by k_n or of the network's own size, or all."""
        if self.draws_in_vain:
            return [True] * self.num_rows
        sizes = self.column("k_n") if self.learned_noise is None else self.learned_noise.coefficients[:, 0]
        return [bool(size) for size in sizes.tolist()]

    def column(self, name: str) -> Tensor:
        """One column by name, float32 [N]."""
        return self.coefficients[:, COLUMNS.index(name)]

    def to(self, device: torch.device | str) -> StepTable:
        """The same table on another device."""
        learned = self.learned_noise
        return replace(
            self,
            coefficients=self.coefficients.to(device),
            timesteps=self.timesteps.to(device),
            learned_noise=learned and replace(learned, coefficients=learned.coefficients.to(device)),
        )
