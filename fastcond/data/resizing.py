"""Images of one size: scale until the wanted size is covered, then cut the centre out."""

from __future__ import annotations

import operator
from fractions import Fraction

import numpy as np
from PIL import Image


def parse_size(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """An int is a square, a pair is (H, W). Raises: ValueError for anything else, or a side below 1."""
    if size is None:
        return None
    try:
        height, width = (operator.index(side) for side in (size if isinstance(size, (tuple, list)) else (size, size)))
    except (TypeError, ValueError):
        raise ValueError(f"size {size!r}: give one number of pixels or a pair (height, width)") from None
    if height < 1 or width < 1:
        raise ValueError(f"size {size!r}: sides must be at least 1 pixel")
    return height, width


def fit_image(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale [h, w, C] uint8 to cover `size` = (H, W) and cut its centre out, uint8 [H, W, C].

    A whole reduction averages blocks of pixels and a whole enlargement repeats pixels, both along the pixel grid, so
    that pixel art stays exact. Everything else is LANCZOS.
    """
    height, width = pixels.shape[:2]
    if (height, width) == size:
        return pixels
    factor = min(Fraction(height, size[0]), Fraction(width, size[1]))  # pixels of the original per pixel of the result
    if factor.denominator == 1:
        return _average_blocks(_cut(pixels, (size[0] * factor.numerator, size[1] * factor.numerator)), size)
    if factor.numerator == 1:
        return _cut(pixels.repeat(factor.denominator, axis=0).repeat(factor.denominator, axis=1), size)
    top, left = (height - size[0] * factor) / 2, (width - size[1] * factor) / 2
    box = (float(left), float(top), float(left + size[1] * factor), float(top + size[0] * factor))
    # Channel by channel: one path for any number of channels, with the result that Pillow gives for RGB.
    planes = [
        np.asarray(Image.fromarray(pixels[..., channel]).resize((size[1], size[0]), Image.Resampling.LANCZOS, box))
        for channel in range(pixels.shape[2])
    ]
    return np.stack(planes, axis=-1)


def _cut(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The centre of [h, w, C], a view [H, W, C]; an odd pixel to spare is left at the bottom and the right."""
    top, left = (pixels.shape[0] - size[0]) // 2, (pixels.shape[1] - size[1]) // 2
    return pixels[top : top + size[0], left : left + size[1]]


def _average_blocks(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[H*k, W*k, C] to [H, W, C]: the mean of each block of k x k, rounded once.

    Pillow's BOX rounds after the rows and again after the columns, and so brightens the image by up to one.
    """
    height, width = size
    times = pixels.shape[0] // height
    rows = pixels.reshape(height, times, -1).sum(axis=1, dtype=np.uint32)
    sums = rows.reshape(height, width, times, pixels.shape[2]).sum(axis=2, dtype=np.uint32)
    area = times * times
    means: np.ndarray = (2 * sums + area) // (2 * area)
    return means.astype(np.uint8)


def fit_images(images: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """`fit_image` on each of [N, h, w, C]; the array itself where the size is None or already right."""
    if size is None or images.shape[1:3] == size:
        return images
    fitted = np.empty((len(images), *size, images.shape[3]), np.uint8)
    for index, pixels in enumerate(images):
        fitted[index] = fit_image(pixels, size)
    return fitted
