"""What keeps x0 in bounds: a clamp, or dynamic thresholding, which wins where a scheduler has both."""

from __future__ import annotations

from dataclasses import replace

from fastcond.diffusion.step_table import COLUMNS, StepTable
from fastcond.diffusion.thresholding import DynamicThreshold

Threshold = tuple[float, float]  # percentile and sample_max_value


def bounded(table: StepTable, clip: float, threshold: Threshold | None = None) -> StepTable:
    """The table with x0 clamped to [-clip, clip], or thresholded: clamp(x0, -s, s)/s, s = min(max(1, percentile), largest).

    Where largest is 1, diffusers' default, s is 1 whatever the image: a clamp, and no composed step. Where it is less, s is
    that number, and the division goes into p_x and p_o.
    Raises: ValueError for bounds that are not positive.
    """
    coefficients = table.coefficients.clone()
    p, c = [COLUMNS.index("p_x"), COLUMNS.index("p_o")], COLUMNS.index("c")
    if threshold is None:
        if not clip > 0:
            raise ValueError(f"clip is {clip:g}; it must be positive (inf turns it off)")
        coefficients[:, c] = clip
        return replace(table, coefficients=coefficients)
    percentile, largest = threshold
    if not largest > 0:
        raise ValueError(f"sample_max_value is {largest:g}; it must be positive")
    dynamic = DynamicThreshold(percentile, max(1.0, largest))
    if largest > 1:
        return replace(table, threshold=dynamic)
    coefficients[:, c] = 1.0
    coefficients[:, p] /= largest
    return replace(table, coefficients=coefficients)
