"""Classifier-free guidance: g = u + w (c - u), w = 1 off (Ho & Salimans 2022, eq. 6, with their w plus one), and its rescale."""

from __future__ import annotations

import math

import torch
from torch import Tensor


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


def rescale_guidance(guided: Tensor, conditional: Tensor, phi: float) -> Tensor:
    """phi g std(c)/std(g) + (1 - phi) g: guidance without the contrast that it adds.

    std is an image's own over all of its elements (with n - 1). An image whose g is constant is left as it is.
    Args: guided g and conditional c: float [B, C, H, W]; phi in [0, 1], 0 is off, 0.7 the paper's.
    Returns: a tensor like guided.
    Raises: ValueError for a phi outside [0, 1].
    Source: Lin et al. 2024, "Common diffusion noise schedules and sample steps are flawed", eq. 14 to 16.
    """
    check_rescale(phi)
    dims = tuple(range(1, guided.dim()))
    wanted, found = conditional.std(dim=dims, keepdim=True), guided.std(dim=dims, keepdim=True)
    ratio = torch.where(found > 0, wanted / found, 1.0)
    return guided * (phi * ratio + (1 - phi))


def check_rescale(phi: float) -> None:
    """Raises ValueError unless 0 <= phi <= 1."""
    if not 0.0 <= phi <= 1.0:
        raise ValueError(f"guidance rescale is {phi}; it must lie in [0, 1] (0 is off)")
