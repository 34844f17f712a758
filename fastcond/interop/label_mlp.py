"""The label MLP beside a `UNet2DConditionModel`: where its file lies, what is read of it, and how it is written back."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fastcond.interop.weights import as_numbers, naming, read_file
from fastcond.messages import printable

# Where a network keeps it, and its file.
LABEL_MLP, LABEL_MLP_NAME = "label_embedding.", "emb_net.safetensors"
_REMEDY = "--label-mlp FILE, or fastcond.load_diffusers(..., label_mlp=...)"
_STEM, _SUFFIXES = "emb_net", (".safetensors", ".pth", ".pt")


def find_label_mlp(unet: Path, beside: Path) -> Path:
    """emb_net.safetensors, .pth or .pt, or the only one whose name ends so, in the folder, else beside it.

    Of a folder whose name is some word and conditional_unet, the one of the same word comes first: better_emb_net.pth for
    better_conditional_unet.pth.

    Raises: FileNotFoundError where there is none, ValueError where there are several: whose they are, nothing tells.
    """
    named = re.match(r"(.*)conditional_unet", Path(os.path.abspath(unet)).name)  # of ".", pathlib knows no name
    stems = dict.fromkeys([f"{named[1] if named else ''}{_STEM}", _STEM])
    for folder in (unet, beside):
        for stem in stems:
            for suffix in _SUFFIXES:
                if (folder / f"{stem}{suffix}").is_file():
                    return folder / f"{stem}{suffix}"
        found = [path for path in sorted(folder.glob(f"*{_STEM}.*")) if path.suffix in _SUFFIXES and path.stem.endswith(_STEM)]
        found = [path for path in found if path.is_file()]
        if len({path.stem for path in found}) > 1:
            names = ", ".join(printable(path.name) for path in found)
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
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path} to read a label MLP of; name one: {_REMEDY}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name the label MLP's file: {_REMEDY}")
    weights = read_file(path)
    layers = sorted({int(match[1]) for name in weights if (match := re.fullmatch(r"(\d{1,4})\.(weight|bias)", name))})
    expected = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    if len(layers) != 2 or set(weights) != expected:
        found = printable(", ".join(sorted(weights))[:200]) or "nothing"
        raise ValueError(f"{path} holds {found}; two Linears of a Sequential are needed, such as 0 and 2")
    first, second = (weights[f"{layer}.weight"] for layer in layers)
    if first.dim() != 2 or second.dim() != 2 or second.shape[1] != first.shape[0]:
        raise ValueError(f"{path}: weights of shapes {list(first.shape)} and {list(second.shape)} do not follow one another")
    if 0 in (*first.shape, len(second)):
        raise ValueError(f"{path}: weights of shapes {list(first.shape)} and {list(second.shape)} are of no labels or no numbers")
    with naming(path):
        for name, value in weights.items():
            if name.endswith("bias") and list(value.shape) != [len(weights[name.replace("bias", "weight")])]:
                wanted = len(weights[name.replace("bias", "weight")])
                raise ValueError(f"{name} is {list(value.shape)}; the weight beside it says {[wanted]}")
            as_numbers(name, value, torch.float32)
    places = zip(("linear_1", "linear_2"), layers, strict=True)
    renamed = {f"{name}.{kind}": weights[f"{layer}.{kind}"] for name, layer in places for kind in ("weight", "bias")}
    return renamed, (layers[0], layers[1])


def as_sequential(weights: Mapping[str, Tensor], positions: tuple[int, int]) -> dict[str, Tensor]:
    """`read_label_mlp` backwards: a state_dict that the Sequential loads in which the Linears stand at these positions."""
    place_of = dict(zip(("linear_1", "linear_2"), positions, strict=True))
    return {f"{place_of[name.split('.')[0]]}.{name.split('.')[1]}": value for name, value in weights.items()}


__all__ = ["LABEL_MLP", "LABEL_MLP_NAME", "as_sequential", "find_label_mlp", "read_label_mlp"]
