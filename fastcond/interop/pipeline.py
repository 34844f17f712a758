"""Sampling with the words of a diffusers pipeline."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastcond.engine import generate
from fastcond.engine.conditioning_table import vector_label_width
from fastcond.images import image_grid
from fastcond.interop.opening import open_model
from fastcond.nn import ConditionalUNet

Labels = int | str | Sequence[int | str] | Sequence[Sequence[float]] | np.ndarray | Tensor


@dataclass
class PipelineOutput:
    """images: PIL images, or float32 [N, H, W, C] in [0, 1] for output_type "np", or float32 [N, C, H, W] for "pt"."""

    images: Any

    def grid(self, columns: int = 5) -> Image.Image:
        """The PIL images in rows of `columns`, small ones enlarged without smoothing."""
        return image_grid(np.stack([np.asarray(image.convert("RGB")) for image in self.images]), columns)


class Pipeline:
    """A network, its scheduler and its class names, called as a pipeline of diffusers is.

    Args: model: in eval mode or not. class_names: K of them; None: the labels as numbers. sampler: as `fastcond.generate`'s;
        None: the scheduler that the model came with, else "ddpm".
    """

    def __init__(self, model: ConditionalUNet, class_names: Sequence[str] | None = None, sampler: str | None = None) -> None:
        self.unet = model
        count = model.config.num_classes
        self.class_names = tuple(map(str, range(count))) if class_names is None else tuple(class_names)
        if len(self.class_names) != count:
            raise ValueError(f"there are {len(self.class_names)} class names for {count} classes")
        self.sampler = sampler or ("ddpm" if model.diffusion.scheduler is None else "scheduler")

    @classmethod
    def from_pretrained(cls, path: str | Path, *, device: str | torch.device = "cpu") -> Pipeline:
        """Of a run of fastcond, or a model or pipeline folder of diffusers. Raises: as `fastcond.interop.open_model`."""
        opened = open_model(path, device=device)
        return cls(opened.model, opened.class_names, opened.sampler)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.unet.parameters()).device

    def to(self, device: str | torch.device) -> Pipeline:
        """Move the network there."""
        self.unet.to(device)
        return self

    def __call__(
        self,
        class_labels: Labels,
        *,
        guidance_scale: float | Sequence[float] = 1.0,
        num_inference_steps: int = 50,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        seed: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        **options: Any,
    ) -> PipelineOutput | tuple[Any]:
        """Draw one image a label.

        Args:
            class_labels: an index or a name, or a list of them; a list of one-hot rows, or, where the network takes vectors, of
                soft or multi-label ones, as a list, array or tensor [N, K].
            guidance_scale: w in u + w (c - u), one number or one an image; 1 is off.
            num_inference_steps: of the sampler.
            generator: draws the noise as diffusers' pipelines do, so that the images can be compared; None: noise by `seed`.
            seed: of the noise; None: drawn from PyTorch's global generator, so that torch.manual_seed repeats a call.
            output_type: "pil", "np" or "pt". return_dict: False: a tuple of the images takes the output's place.
            options: further keywords of `fastcond.generate`, such as sampler or guidance_interval.
        Returns: a `PipelineOutput`.
        Raises: ValueError naming the argument that does not fit and what was found.
        """
        unknown = sorted(options.keys() - inspect.signature(generate).parameters.keys())
        if unknown:
            raise TypeError(f"{', '.join(unknown)}: no such argument; images are asked for by class_labels and guidance_scale")
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type is {output_type!r}; choose pil, np or pt")
        if generator is not None and seed is not None:
            raise ValueError("generator and seed are both given; one of them says what the noise is")
        noise: dict[str, Any] = {"rng": generator}
        if generator is None:
            noise = {"seed": int(torch.randint(2**32, ())) if seed is None else seed}
        settings = {"sampler": self.sampler, "guidance": guidance_scale, "steps": num_inference_steps, **noise, **options}
        pixels = generate(self.unet, self._labels(class_labels), **settings)
        images: Any = _converted(pixels, output_type)
        return PipelineOutput(images) if return_dict else (images,)

    def _labels(self, labels: Labels) -> Any:
        """What `generate` takes."""
        if isinstance(labels, int | str):
            labels = [labels]
        if isinstance(labels, Tensor):
            labels = labels.cpu().numpy()
        if not isinstance(labels, np.ndarray):
            if any(isinstance(label, str) for label in labels):
                return [self._index(label) if isinstance(label, str) else label for label in labels]
            labels = np.asarray(labels)
        if labels.ndim != 2 or vector_label_width(self.unet.config) is not None:
            return labels
        # A table knows classes only: a row must be one of them.
        is_binary = np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all()
        if labels.shape[1] != len(self.class_names) or not is_binary:
            raise ValueError(
                f"class_labels is {labels.dtype} {list(labels.shape)}; this network knows classes by a table: give indices, "
                f"names, or one-hot rows of {len(self.class_names)} numbers"
            )
        return labels.argmax(axis=1)

    def _index(self, name: str) -> int:
        if name not in self.class_names:
            raise ValueError(f"there is no class {name!r}; the names are {', '.join(self.class_names[:50])}")
        return self.class_names.index(name)


def _converted(pixels: np.ndarray, output_type: str) -> Any:
    """uint8 [N, H, W, C] as an output type says."""
    if output_type == "pil":
        return [Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image) for image in pixels]
    floats = pixels.astype(np.float32) / 255
    return floats if output_type == "np" else torch.from_numpy(floats).permute(0, 3, 1, 2)
