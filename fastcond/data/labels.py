"""Labels as people store them (integers, floats that are whole, one-hot rows) to int64; other rows to float32."""

from __future__ import annotations

import numpy as np


def as_labels(labels: np.ndarray, origin: str, *, label_rows: bool = False) -> tuple[np.ndarray, int]:
    """Turn labels of any form into int64 [N], or float32 [N, K] where they are no such, and the number of classes.

    Args:
        labels: [N] integers (any dtype whose values are whole), or [N, K] one-hot rows of any dtype. A column [N, 1]
            is read as integers, unless it is all ones: that is the one-hot form of a single class.
        origin: what error messages call the source.
        label_rows: whether rows may be any numbers: soft, several classes at once, or zeros, which is no class.
    Returns: (labels, int64 [N], or float32 [N, K] of rows that are not all one-hot; number of classes: K for rows, else the
        largest label + 1).
    Raises: ValueError for another shape, text, a value that is not whole or negative, a row that is not one-hot or, where it need
        not be, not finite.
    """
    if labels.dtype.kind not in "biuf":
        raise ValueError(f"{origin}: labels are {labels.dtype}, not numbers; give integers 0, 1, ... or one-hot rows")
    if labels.ndim not in (1, 2) or labels.size == 0:
        raise ValueError(f"{origin}: labels have shape {_shape(labels)}; give integers [N] or one-hot rows [N, K]")
    if labels.ndim == 2 and (labels.shape[1] > 1 or np.all(labels == 1)):
        return _from_rows(labels, origin, label_rows)
    return _from_numbers(labels.reshape(-1), origin)


def _from_numbers(labels: np.ndarray, origin: str) -> tuple[np.ndarray, int]:
    # The remainder of NaN and inf is NaN, so they count as "not whole" too.
    with np.errstate(invalid="ignore"):
        wrong = _first(labels % 1 != 0) if labels.dtype.kind == "f" else None
    if wrong is not None:
        raise ValueError(f"{origin}: label {labels[wrong]} of image {wrong} is not an integer; use 0, 1, 2, ...")
    wrong = _first(labels < 0)
    if wrong is not None:
        raise ValueError(f"{origin}: label {int(labels[wrong])} of image {wrong} is negative; labels start at 0")
    # Every class needs an image, so a label beyond the count of images can only be a mistake; it is caught here
    # because a count of classes made from it (2**40, say) would not fit in memory.
    wrong = _first(labels >= len(labels))
    if wrong is not None:
        raise ValueError(
            f"{origin}: label {int(labels[wrong])} of image {wrong} leaves labels with no image: there are only "
            f"{len(labels)} images; number the classes 0, 1, 2, ... without gaps"
        )
    integers = labels.astype(np.int64)
    return integers, int(integers.max()) + 1


def _from_rows(rows: np.ndarray, origin: str, any_numbers: bool) -> tuple[np.ndarray, int]:
    wrong = _first(((rows != 0) & (rows != 1)).any(axis=1) | (np.count_nonzero(rows, axis=1) != 1))
    if wrong is not None and any_numbers:
        with np.errstate(over="ignore"):
            numbers = rows.astype(np.float32)
        finite: np.ndarray = np.isfinite(numbers)
        wrong = _first(np.asarray(~finite.all(axis=1)))
        if wrong is None:
            return numbers, rows.shape[1]
        raise ValueError(f"{origin}: the label of image {wrong} holds a number that is not finite in float32; use finite ones")
    if wrong is not None:
        raise ValueError(
            f"{origin}: the label of image {wrong} is not one-hot: its {rows.shape[1]} values sum to "
            f"{rows[wrong].astype(np.float64).sum():g}; each row needs a single 1 among zeros; "
            "soft rows and several classes at once are for --conditioning label-attention"
        )
    return rows.argmax(axis=1).astype(np.int64), rows.shape[1]


def _first(mask: np.ndarray) -> int | None:
    """The first index where mask [N] is true."""
    return int(mask.argmax()) if mask.any() else None


def _shape(array: np.ndarray) -> str:
    return f"[{', '.join(str(n) for n in array.shape)}]"
