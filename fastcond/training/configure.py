"""From flags to a run's config: a new run takes its preset's values, a resumed one its stored ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from fastcond.config import DataConfig, DiffusionConfig, RunConfig, TrainingConfig, UNetConfig
from fastcond.data import LabelledImages
from fastcond.engine.compile import has_bf16, has_c_compiler
from fastcond.presets import PRESETS, choose_preset

# Flag -> field, by section of the run's config.
NETWORK = {"conditioning": "conditioning", "dropout": "dropout"}
DIFFUSION = {
    "schedule": "schedule",
    "timesteps": "num_timesteps",
    "prediction": "prediction",
    "variance": "variance",
    "rescale_betas": "rescale_linear_betas",
    "zero_terminal_snr": "zero_terminal_snr",
}
TRAINING = {
    "batch_size": "batch_size",
    "accumulate": "accumulation",
    "lr": "learning_rate",
    "lr_schedule": "lr_schedule",
    "warmup": "warmup_steps",
    "weight_decay": "weight_decay",
    "clip": "clip_grad_norm",
    "ema": "ema_decay",
    "label_dropout": "label_dropout",
    "loss": "weighting",
    "balance": "balanced",
    "flip": "flip",
    "seed": "seed",
}
# What belongs to the machine and not to the run: a resumed run may change it.
MACHINE = {"precision": "precision", "compile": "compile"}


def new_config(given: Mapping[str, Any], data: LabelledImages, device: torch.device) -> RunConfig:
    """The config of a new run: the preset's values, overridden by the flags that were given.

    Args: given: flags by name with "_" for "-", those left out absent or None. data: what is trained on. device: where.
    Raises: ValueError for values that do not fit each other or the data.
    """
    name = given.get("preset") or "auto"
    preset = PRESETS[choose_preset(data.image_size, device.type) if name == "auto" else name]
    training = {**preset.training, **_fields(given, TRAINING | MACHINE)}
    training.setdefault("precision", "bf16" if has_bf16(device) else "fp32")
    training.setdefault("compile", device.type == "cuda" and has_c_compiler())
    if given.get("minutes") is not None or given.get("steps") is not None:
        training |= {"minutes": given.get("minutes"), "steps": given.get("steps")}
    diffusion = DiffusionConfig(**{**preset.diffusion, **_fields(given, DIFFUSION)})
    if given.get("rescale_betas") is not None and diffusion.schedule != "linear":
        flag = "--rescale-betas" if given["rescale_betas"] else "--no-rescale-betas"
        raise ValueError(
            f"{flag} is a setting of the linear schedule, and this one is {diffusion.schedule}; use --schedule linear"
        )
    return RunConfig(
        network=UNetConfig(
            image_size=data.image_size,
            num_classes=data.num_classes,
            in_channels=data.channels,
            out_channels=data.channels * (2 if diffusion.variance == "learned_range" else 1),
            **{**preset.network, **_fields(given, NETWORK)},
        ),
        diffusion=diffusion,
        training=TrainingConfig(**training),
        data=DataConfig(given.get("data") or "sprites", given.get("labels"), given.get("size"), data.labels.ndim == 2),
    )


def resumed_config(given: Mapping[str, Any], stored: RunConfig, device: torch.device) -> RunConfig:
    """The stored config with what may change: the budget, the place of the data, precision and compilation.

    Raises: ValueError for a flag that says something else than the run was begun with.
    """
    sections = {"network": NETWORK, "diffusion": DIFFUSION, "training": TRAINING, "data": {"size": "size"}}
    for section, flags in sections.items():
        for flag, field in flags.items():
            value, kept = given.get(flag), getattr(getattr(stored, section), field)
            if value is not None and value != kept:
                name = flag.replace("_", "-")
                raise ValueError(
                    f"--{name} {value} differs from the run's {kept}; a resumed run keeps its settings: leave it out"
                )
    name = given.get("preset") or "auto"
    if name != "auto" and not _is_of_preset(stored, name):
        raise ValueError(f"--preset {name} is not the network of this run; a resumed run keeps its own: leave it out")
    training = _fields(given, MACHINE)
    if device.type == "cpu" and given.get("compile") is None:
        training["compile"] = False  # begun on a GPU, perhaps; on a CPU compiling takes longer than it saves
    if given.get("steps") is not None or given.get("minutes") is not None:
        training |= {"steps": given.get("steps"), "minutes": given.get("minutes")}
    data = {"source": given.get("data"), "labels": given.get("labels")}
    return dataclasses.replace(
        stored,
        training=dataclasses.replace(stored.training, **training),
        data=dataclasses.replace(stored.data, **{name: value for name, value in data.items() if value is not None}),
    )


def require_same_kind(data: LabelledImages, config: RunConfig, class_names: tuple[str, ...]) -> None:
    """Raise ValueError for data that the run's network was not made for."""
    network = config.network
    found = (*data.image_size, data.channels, data.class_names)
    if found != (*network.image_size, network.in_channels, class_names):
        raise ValueError(
            f"{config.data.source} has {data.num_classes} classes ({_some(data.class_names)}) of "
            f"{data.image_size[0]}x{data.image_size[1]}x{data.channels} images; this run was begun with other data: "
            f"{len(class_names)} classes ({_some(class_names)}) of "
            f"{network.image_size[0]}x{network.image_size[1]}x{network.in_channels}"
        )
    rows = data.labels.ndim == 2
    if config.data.label_rows not in (None, rows):
        kinds = {True: "rows of numbers", False: "one class an image"}
        raise ValueError(
            f"{config.data.labels or config.data.source} has labels that are {kinds[rows]}; "
            f"this run was begun with labels that are {kinds[not rows]}: give it those"
        )


def _some(names: tuple[str, ...]) -> str:
    """The first five names."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _is_of_preset(stored: RunConfig, name: str) -> bool:
    """Whether network and process are the preset's, apart from what flags may have changed."""
    sections = ((stored.network, PRESETS[name].network, NETWORK), (stored.diffusion, PRESETS[name].diffusion, DIFFUSION))
    return all(
        field in flags.values() or getattr(config, field) == value
        for config, values, flags in sections
        for field, value in values.items()
    )


def _fields(given: Mapping[str, Any], flags: Mapping[str, str]) -> dict[str, Any]:
    """The fields whose flags were given."""
    return {field: given[flag] for flag, field in flags.items() if given.get(flag) is not None}
