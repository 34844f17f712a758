"""Where the parts of a model of diffusers lie: a model's folder, a pipeline's, or one of a pipeline's sub-folders."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcond.json_file import read_json

INDEX_NAME = "model_index.json"
LABELS_NAME = "class_labels.json"
# Components of a pipeline that make its network's samples something else than pixels.
_OF_LATENTS = ("vae", "vqvae", "movq", "text_encoder", "image_encoder", "bert")


@dataclass(frozen=True)
class Layout:
    """The parts of a model that was named by a folder.

    Attributes:
        unet: where config.json and the weights are. beside: the folder around them.
        index: model_index.json of the pipeline that it is part of; None: of none.
        named: what was named, and whether it is the pipeline itself.
    """

    named: Path
    unet: Path
    beside: Path
    index: Path | None
    is_pipeline: bool

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where files about the network as a whole are looked for, the nearest first."""
        beside = self.beside if self.is_pipeline or self.index is not None else None
        return tuple(dict.fromkeys(folder for folder in (self.named, self.unet, beside) if folder is not None))


def layout_of(path: str | Path) -> Layout:
    """The parts of a model that lies in a folder, by which files are there. Raises: FileNotFoundError for what is no folder."""
    named = Path(path)
    if not named.is_dir():
        raise FileNotFoundError(f"{named} is not a folder")
    # Pipelines of diffusers' first versions, google/ddpm-* among them, hold their parts in the folder itself.
    is_flat = not (named / "unet").is_dir() and (named / "config.json").is_file()
    is_pipeline = (named / INDEX_NAME).is_file()
    unet = named / "unet" if is_pipeline and not is_flat else named
    # Of "." and "..", pathlib knows no parent.
    beside = unet.parent if unet.name not in ("", "..") else Path(os.path.abspath(unet)).parent
    index = named / INDEX_NAME if is_pipeline else beside / INDEX_NAME
    return Layout(named, unet, beside, index if index.is_file() else None, is_pipeline)


def latent_components(layout: Layout) -> list[str]:
    """Names of the pipeline's components that stand between its network and pixels. Raises: ValueError for a broken index."""
    if layout.index is None:
        return []
    components = read_json(layout.index, remedy="")
    return [name for name, value in components.items() if name.startswith(_OF_LATENTS) and _is_there(value)]


def names_scheduler(layout: Layout) -> bool:
    """Whether the pipeline is to have a scheduler of its own. Raises: ValueError for a broken index."""
    return layout.index is not None and _is_there(read_json(layout.index, remedy="").get("scheduler"))


def _is_there(component: Any) -> bool:
    """Of a component that was left out, diffusers writes [null, null]."""
    return isinstance(component, list) and any(part is not None for part in component)


__all__ = ["INDEX_NAME", "LABELS_NAME", "Layout", "latent_components", "layout_of", "names_scheduler"]
