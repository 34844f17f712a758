"""Classifier-free guidance: g = u + w (c - u), w = 1 off (Ho & Salimans 2022, eq. 6, with their w plus one)."""

from __future__ import annotations

import math


def guidance_per_row(w: float, num_rows: int, interval: tuple[float, float] | None = None) -> list[float]:
    """The guidance of each row of a sampler's table: w inside the interval; 1 outside, where the unconditional half is unused.

    Args:
        w: guidance scale; 1 is off, 0 ignores the label.
        num_rows: N, rows of the table, noisiest first.
        interval: (start, stop) as fractions of the run, 0 <= start < stop <= 1; rows from floor(start N) to floor(stop N) - 1
            are guided. None guides all.
    Raises: ValueError for a scale that is not finite or an interval that is none.
    Source: Kynkaanniemi et al. 2024 (guidance in a limited interval).
    """
    if not math.isfinite(w):
        raise ValueError(f"guidance is {w}; it must be a finite number (1 is off)")
    if interval is None:
        return [w] * num_rows
    start, stop = interval
    if not 0.0 <= start < stop <= 1.0:
        raise ValueError(f"guidance interval is {start} to {stop}; give two fractions of the run, 0 <= start < stop <= 1")
    # A nudge keeps fractions such as 0.29 * 100 = 28.999... on the row that was meant.
    first, last = math.floor(start * num_rows + 1e-9), math.floor(stop * num_rows + 1e-9)
    return [w if first <= row < last else 1.0 for row in range(num_rows)]
