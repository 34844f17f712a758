"""Folders of diffusers: a model's, or a pipeline's, into a `ConditionalUNet`, and out again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fastcond.config import DiffusionConfig
from fastcond.diffusion import from_diffusers_config
from fastcond.interop.saving import LABEL_MLP, LABEL_MLP_NAME, LABELS_NAME, save_diffusers
from fastcond.interop.unet2d_condition_config import CLASS as CONDITION_CLASS
from fastcond.interop.unet2d_condition_config import label_unet_config
from fastcond.interop.unet2d_config import CLASS, unet_config
from fastcond.interop.weights import load_into, naming, read_file, read_folder
from fastcond.nn import ConditionalUNet
from fastcond.training.run_directory import read_json

__all__ = ["class_names_of", "load_diffusers", "save_diffusers"]

_LABEL_MLP_NAMES = (LABEL_MLP_NAME, "emb_net.pth", "emb_net.pt")
# What of a config the weights' shapes follow from.
_SHAPING = ("block_out_channels", "layers_per_block", "down_block_types", "up_block_types", "in_channels", "out_channels")


def load_diffusers(
    path: str | Path,
    *,
    label_mlp: str | Path | None = None,
    null_label: bool | None = None,
    image_size: tuple[int, int] | None = None,
    variant: str | None = None,
) -> ConditionalUNet:
    """A network that diffusers has saved, in float32 and eval mode, on the CPU.

    Args:
        path: a folder with config.json and weights, or a pipeline's with model_index.json, unet/ and scheduler/, or with the
            files of these two in the folder itself.
        label_mlp: of a `UNet2DConditionModel`, the file of the MLP that makes a token of a one-hot label; None:
            emb_net.safetensors, .pth or .pt in the folder or beside it.
        null_label: whether the last row of the class-embedding table (of the MLP: a row of zeros) stands for "no condition",
            which guidance needs; None: as class_labels.json says, else not.
        image_size: (H, W) of what is sampled; None: as the config says.
        variant: of the weights' file, such as "fp16".
    Returns: a `ConditionalUNet`, whose `diffusion` follows the pipeline's scheduler; of a model alone, diffusers' DDPM
        defaults with as many timesteps as the network was told of.
    Raises: FileNotFoundError, or ValueError naming the file and what is wrong with it. Nothing that a file holds is run.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    if (folder / "checkpoints").is_dir():
        raise ValueError(f"{folder} is a run of fastcond; load it with fastcond.load_run")
    is_pipeline = (folder / "model_index.json").is_file()
    # Pipelines of diffusers' first versions, google/ddpm-* among them, hold their parts in the folder itself.
    is_flat = not (folder / "unet").is_dir() and (folder / "config.json").is_file()
    unet = folder / "unet" if is_pipeline and not is_flat else folder
    place = unet / "config.json"
    config = _read_json(place)
    if "_class_name" not in config:
        raise ValueError(f"{place} has no _class_name, so it is no model's of diffusers; {CLASS} and {CONDITION_CLASS} are known")
    unsaid = [key for key in _SHAPING if key not in config]
    if null_label is None:
        null_label = any(_names_null_label(place) for place in (folder / LABELS_NAME, unet / LABELS_NAME))
    weights = read_folder(unet, variant)
    if config.get("_class_name") == CONDITION_CLASS:
        mlp_path = _find_label_mlp(unet, label_mlp)
        mlp = _read_label_mlp(mlp_path)
        hidden, classes = mlp["linear_1.weight"].shape
        with naming(place, unsaid):
            network = label_unet_config(
                config, num_classes=classes, label_hidden_dim=hidden, has_null_label=null_label, image_size=image_size
            )
        width, wanted = len(mlp["linear_2.weight"]), network.label_token_dim or network.label_context_dim
        if width != wanted:
            raise ValueError(f"{mlp_path} makes tokens of {width} numbers; {place} says {wanted}")
        weights.update({LABEL_MLP + name: value for name, value in mlp.items()})
    else:
        with naming(place, unsaid):
            network = unet_config(config, has_null_label=null_label, image_size=image_size)
    model = ConditionalUNet(network, _diffusion(folder))
    with naming(unet, unsaid):
        load_into(model, weights)
    return model.requires_grad_(False).eval()


def class_names_of(path: str | Path, num_classes: int) -> tuple[str, ...]:
    """The names in a folder's class_labels.json, by label; numbers where there is none. Raises: ValueError for a broken file."""
    for place in (Path(path) / LABELS_NAME, Path(path) / "unet" / LABELS_NAME):
        if place.is_file():
            ids = _read_json(place).get("label2id")
            if not isinstance(ids, dict) or sorted(ids.values(), key=str) != sorted(range(num_classes), key=str):
                raise ValueError(f"{place}: label2id must name the labels 0 to {num_classes - 1}, each once")
            return tuple(sorted(ids, key=lambda name: ids[name]))
    return tuple(str(label) for label in range(num_classes))


def _names_null_label(path: Path) -> bool:
    return path.is_file() and _read_json(path).get("null_class_id") is not None


def _diffusion(folder: Path) -> DiffusionConfig:
    """What the pipeline's scheduler says; DDPM's defaults where there is none."""
    path = folder / "scheduler" / "scheduler_config.json"
    path = path if path.is_file() else folder / path.name
    index = folder / "model_index.json"
    if index.is_file() and "scheduler" in _read_json(index) and not path.is_file():
        raise FileNotFoundError(f"{index} names a scheduler, and scheduler/{path.name} is missing; the folder is not whole")
    config: Mapping[str, Any] = _read_json(path) if path.is_file() else {"_class_name": "DDPMScheduler"}
    with naming(path):
        found = from_diffusers_config(config)
    return DiffusionConfig(num_timesteps=found.schedule.num_timesteps, prediction=found.prediction, scheduler=dict(config))


def _find_label_mlp(unet: Path, given: str | Path | None) -> Path:
    if given is not None:
        return Path(given)
    for folder in (unet, unet.parent):
        for name in _LABEL_MLP_NAMES:
            if (folder / name).is_file():
                return folder / name
    raise FileNotFoundError(
        f"{unet} is a {CONDITION_CLASS}, which is told a token; no {', '.join(_LABEL_MLP_NAMES)} is there or beside it: copy the "
        "label MLP's file there, or name it: fastcond.load_diffusers(..., label_mlp=...)"
    )


def _read_label_mlp(path: Path) -> dict[str, Tensor]:
    """The two Linears of a Sequential, wherever they stand in it."""
    weights = read_file(path)
    layers = sorted({int(match[1]) for name in weights if (match := re.fullmatch(r"(\d+)\.(weight|bias)", name))})
    expected = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    if len(layers) != 2 or set(weights) != expected:
        found = ", ".join(sorted(weights))[:200] or "nothing"
        raise ValueError(f"{path} holds {found}; two Linears of a Sequential are needed, such as 0 and 2")
    first, second = (weights[f"{layer}.weight"] for layer in layers)
    if first.dim() != 2 or second.dim() != 2 or second.shape[1] != first.shape[0]:
        raise ValueError(f"{path}: weights of shapes {list(first.shape)} and {list(second.shape)} do not follow one another")
    places = zip(("linear_1", "linear_2"), layers, strict=True)
    return {f"{name}.{kind}": weights[f"{layer}.{kind}"] for name, layer in places for kind in ("weight", "bias")}


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; the folder is not one of diffusers, or not whole")
    return read_json(path, remedy="")
