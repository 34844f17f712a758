"""StepTable: columns by name, what it says about itself, refusals."""

from __future__ import annotations

import pytest
import torch

from fastcond.diffusion import StepTable
from fastcond.diffusion.step_table import COLUMNS

TIMESTEPS = torch.tensor([9, 4, 0])


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_columns_stand_where_the_kernel_reads_them() -> None:
    assert COLUMNS == ("p_x", "p_o", "c", "k_x", "k_0", "k_o", "k_h", "k_n")
    columns = {name: column(index, index + 0.1, index + 0.2) for index, name in enumerate(COLUMNS)}
    table = StepTable.from_columns(TIMESTEPS, columns)
    assert table.coefficients.dtype == torch.float32 and table.coefficients.shape == (3, 8)
    assert table.num_rows == 3 and torch.equal(table.timesteps, TIMESTEPS)
    for index, name in enumerate(COLUMNS):
        assert torch.equal(table.column(name), columns[name].float())
        assert torch.equal(table.coefficients[:, index], columns[name].float())


def test_absent_columns_are_zero_and_absent_clamping_is_off() -> None:
    table = StepTable.from_columns(TIMESTEPS, {})
    assert table.column("c").isinf().all() and int((table.coefficients == 0).sum()) == 3 * 7


@pytest.mark.parametrize("name", COLUMNS)
def test_table_knows_whether_it_needs_history_and_noise(name: str) -> None:
    table = StepTable.from_columns(TIMESTEPS, {name: column(1, 0.5, 1)})
    assert table.keeps_history == (name == "k_h") and table.draws_noise == (name == "k_n")


def test_moving_keeps_everything() -> None:
    table = StepTable.from_columns(TIMESTEPS, {"k_h": column(1, 1, 1), "k_n": column(1, 1, 0)}).to("meta")
    assert table.coefficients.is_meta and table.timesteps.is_meta
    assert table.keeps_history and table.draws_noise and table.num_rows == 3


def test_unknown_column_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown column 'k_y'; a step table has p_x, p_o"):
        StepTable.from_columns(TIMESTEPS, {"k_y": column(1, 1, 1)})


@pytest.mark.parametrize("name", COLUMNS)
def test_a_coefficient_that_is_no_number_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a number"):
        StepTable.from_columns(TIMESTEPS, {name: column(1, float("nan"), 1)})


@pytest.mark.parametrize("clip", [0.0, -1.0])
def test_a_clamp_that_is_not_positive_is_refused(clip: float) -> None:
    with pytest.raises(ValueError, match=f"clip is {clip:g}; it must be positive"):
        StepTable.from_columns(TIMESTEPS, {"c": column(1, clip, 1)})
