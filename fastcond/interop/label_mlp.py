"""The label MLP beside a `UNet2DConditionModel`: where its file lies, what is read of it, and how it is written back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fastcond.interop.weights import read_file

LABEL_MLP_NAME = "emb_net.safetensors"
_REMEDY = "--label-mlp FILE, or fastcond.load_diffusers(..., label_mlp=...)"
_STEM, _SUFFIXES = "emb_net", (".safetensors", ".pth", ".pt")


def find_label_mlp(unet: Path, beside: Path) -> Path:
    """emb_net.safetensors, .pth or .pt, or the only one whose name ends so, in the folder, else beside it.

    Raises: FileNotFoundError where there is none, ValueError where there are several: whose they are, nothing tells.
    """
    for folder in (unet, beside):
        found = [path for path in sorted(folder.glob(f"*{_STEM}.*")) if path.suffix in _SUFFIXES and path.stem.endswith(_STEM)]
        found = [path for path in found if path.is_file()]
        if len({path.stem for path in found}) > 1:
            names = ", ".join(path.name for path in found)
            raise ValueError(f"{folder} holds {names}; say which is the label MLP of {unet.name}: {_REMEDY}")
        if found:
            return min(found, key=lambda path: _SUFFIXES.index(path.suffix))
    raise FileNotFoundError(
        f"{unet} is a network which is told a token; no {_STEM}.safetensors, .pth or .pt, which makes it of a label, is there or "
        f"beside it: copy the label MLP's file there, or name it: {_REMEDY}"
    )


def read_label_mlp(path: Path) -> tuple[dict[str, Tensor], tuple[int, int]]:
    """The two Linears of a Sequential, as linear_1 and linear_2, and where they stand in it.

    Raises: FileNotFoundError; ValueError for a file that is damaged or no such Sequential's.
    """
    weights = read_file(path)
    layers = sorted({int(match[1]) for name in weights if (match := re.fullmatch(r"(\d{1,4})\.(weight|bias)", name))})
    expected = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    if len(layers) != 2 or set(weights) != expected:
        found = ", ".join(sorted(weights))[:200] or "nothing"
        raise ValueError(f"{path} holds {found}; two Linears of a Sequential are needed, such as 0 and 2")
    first, second = (weights[f"{layer}.weight"] for layer in layers)
    if first.dim() != 2 or second.dim() != 2 or second.shape[1] != first.shape[0]:
        raise ValueError(f"{path}: weights of shapes {list(first.shape)} and {list(second.shape)} do not follow one another")
    places = zip(("linear_1", "linear_2"), layers, strict=True)
    renamed = {f"{name}.{kind}": weights[f"{layer}.{kind}"] for name, layer in places for kind in ("weight", "bias")}
    return renamed, (layers[0], layers[1])


def as_sequential(weights: Mapping[str, Tensor], positions: tuple[int, int]) -> dict[str, Tensor]:
    """`read_label_mlp` backwards: a state_dict that the Sequential loads in which the Linears stand at these positions."""
    place_of = dict(zip(("linear_1", "linear_2"), positions, strict=True))
    return {f"{place_of[name.split('.')[0]]}.{name.split('.')[1]}": value for name, value in weights.items()}


__all__ = ["LABEL_MLP_NAME", "as_sequential", "find_label_mlp", "read_label_mlp"]
