"""A sampler is a table: one row a step, eight coefficients a row, executed by `fastcond.ops.diffusion_step`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

COLUMNS = ("p_x", "p_o", "c", "k_x", "k_0", "k_o", "k_h", "k_n")


@dataclass(frozen=True)
class StepTable:
    """The whole of a sampling run, apart from the network.

        x0 = clamp(p_x x + p_o g, -c, c),    x' = k_x x + k_0 x0 + k_o g + k_h h + k_n z

    Attributes:
        coefficients: float32 [N, 8], columns in the order of `COLUMNS`; built in fp64.
        timesteps: int64 [N], what the network is told at each row, noisiest first.
        keeps_history: rows read h, the x0 of the row before. draws_noise: some row's k_n is not 0.
    """

    coefficients: Tensor
    timesteps: Tensor
    keeps_history: bool = False
    draws_noise: bool = False

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.timesteps)

    @classmethod
    def from_columns(cls, timesteps: Tensor, columns: Mapping[str, Tensor]) -> StepTable:
        """Build a table from float64 [N] columns; a column that is absent is 0, an absent c is infinite (no clamping).

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
        )

    def column(self, name: str) -> Tensor:
        """One column by name, float32 [N]."""
        return self.coefficients[:, COLUMNS.index(name)]

    def to(self, device: torch.device | str) -> StepTable:
        """The same table on another device."""
        return replace(self, coefficients=self.coefficients.to(device), timesteps=self.timesteps.to(device))
