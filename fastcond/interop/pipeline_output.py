"""What a `Pipeline` returns: images in the form that was asked for, and the grid of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from fastcond.images import image_grid

OUTPUT_TYPES = ("pil", "np", "numpy", "pt")
_PIL_CHANNELS = (1, 2, 3, 4)  # gray, gray and alpha, RGB, RGB and alpha


@dataclass
class PipelineOutput:
    """images: PIL images, or float32 [N, H, W, C] in [0, 1] for output_type "np" or "numpy", or float32 [N, C, H, W] for "pt".

    Also as an output of diffusers is read: out[0], out["images"].
    """

    images: Any

    def __getitem__(self, key: int | slice | str) -> Any:
        if isinstance(key, str):
            if key != "images":
                raise KeyError(key)
            return self.images
        return self.to_tuple()[key]

    def to_tuple(self) -> tuple[Any]:
        """(images,)."""
        return (self.images,)

    def grid(self, columns: int = 5) -> Image.Image:
        """The PIL images in rows of `columns`, small ones enlarged without smoothing. Raises: ValueError where there are none."""
        if not isinstance(self.images, list) or not self.images:
            found = "no images" if isinstance(self.images, list) else type(self.images).__name__
            raise ValueError(f"a grid is of PIL images, and these are {found}; draw with output_type='pil'")
        return image_grid(np.stack([np.asarray(image.convert("RGB")) for image in self.images]), columns)


def check_output_type(output_type: str, channels: int) -> None:
    """Raises: ValueError for one that is not known, or that images of so many channels cannot have."""
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type is {output_type!r}; choose pil, np or pt")
    if output_type == "pil" and channels not in _PIL_CHANNELS:
        raise ValueError(f"the network draws {channels} channels, which a PIL image cannot have; use output_type='np' or 'pt'")


def converted(pixels: np.ndarray, output_type: str) -> Any:
    """uint8 [N, H, W, C] as an output type says."""
    if output_type == "pil":
        return [Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image) for image in pixels]
    floats = pixels.astype(np.float32) / 255
    return torch.from_numpy(floats).permute(0, 3, 1, 2) if output_type == "pt" else floats
