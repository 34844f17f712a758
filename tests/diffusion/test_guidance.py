"""Which rows of a run are guided."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastcond.diffusion import guidance_per_row


def test_without_an_interval_every_row_is_guided() -> None:
    assert guidance_per_row(2.5, 4) == [2.5] * 4


@pytest.mark.parametrize(
    ("interval", "rows", "guided"),
    [
        ((0.0, 1.0), 10, range(10)),
        ((0.2, 0.7), 10, range(2, 7)),
        ((0.0, 0.25), 10, range(2)),
        ((0.29, 0.57), 100, range(29, 57)),  # 0.29 * 100 is 28.999... in floating point
        ((0.95, 1.0), 10, range(9, 10)),
        ((0.01, 0.02), 10, range(0)),
    ],
)
def test_rows_inside_the_interval_are_guided(interval: tuple[float, float], rows: int, guided: range) -> None:
    assert guidance_per_row(3.0, rows, interval) == [3.0 if row in guided else 1.0 for row in range(rows)]


@given(first=st.integers(0, 99), rows=st.integers(1, 100))
def test_whole_fractions_fall_on_the_row_that_was_meant(first: int, rows: int) -> None:
    first = min(first, rows - 1)
    assert guidance_per_row(2.0, rows, (first / rows, 1.0)) == [1.0] * first + [2.0] * (rows - first)


@pytest.mark.parametrize("w", [float("nan"), float("inf")])
def test_guidance_must_be_a_number(w: float) -> None:
    with pytest.raises(ValueError, match=f"guidance is {w}; it must be a finite number"):
        guidance_per_row(w, 4)


@pytest.mark.parametrize("interval", [(0.5, 0.5), (0.7, 0.2), (-0.1, 0.5), (0.5, 1.1), (float("nan"), 1.0)])
def test_what_is_no_interval_is_refused(interval: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="guidance interval is"):
        guidance_per_row(2.0, 4, interval)
