"""A small pipeline, and what it draws as numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastcond import Pipeline
from tests.support.networks import small_unet

LABELS = [0, 2, 1]


def small_pipeline() -> Pipeline:
    """Of three classes, of a network that diffusers has too."""
    return Pipeline(small_unet(conditioning="bias").eval(), ["x", "y", "z"])


def pixels(output: Any) -> np.ndarray:
    return np.stack([np.asarray(image) for image in output.images])
