"""scikit-learn's handwritten digits: 1,797 grayscale images of 8x8, shipped with that package, no download."""

from __future__ import annotations

import importlib

import numpy as np

from fastcond.data.labelled_images import LabelledImages, label_images


def load_digits() -> LabelledImages:
    """uint8 [1797, 8, 8, 1], the original's 0..16 scaled to 0..255; classes "0" to "9".

    Source: Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits (UCI), the test part.
    Raises: ValueError where scikit-learn is not installed.
    """
    try:
        bunch = importlib.import_module("sklearn.datasets").load_digits()  # an extra: imported only when asked for
    except ImportError:
        raise ValueError('the digits come with scikit-learn: pip install "fastcond[digits]"') from None
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    return label_images("digits", images[..., None], bunch.target)
