"""A `ConditionalUNet` as a pipeline folder that diffusers loads, runs and saves again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from fastcond.config import UNetConfig
from fastcond.interop.label_mlp import LABEL_MLP, LABEL_MLP_NAME, as_sequential
from fastcond.interop.layout import LABELS_NAME
from fastcond.interop.scheduler_choice import scheduler_config
from fastcond.interop.unet2d_condition_config import CLASS as CONDITION_CLASS
from fastcond.interop.unet2d_condition_config import label_unet_config, unet2d_condition_config
from fastcond.interop.unet2d_config import CLASS, unet2d_config, unet_config
from fastcond.interop.weights import as_they_came
from fastcond.messages import shown
from fastcond.nn import ConditionalUNet

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
PIPELINE_NAME = "pipeline.py"
_PIPELINE_SOURCE = Path(__file__).with_name("diffusers_pipeline.py")


def save_diffusers(
    model: ConditionalUNet,
    path: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    scheduler: str | Mapping[str, Any] | None = None,
) -> None:
    """Write a pipeline folder that diffusers loads: model_index.json, unet/, scheduler/, our class_labels.json, and pipeline.py.

    pipeline.py is a pipeline class of diffusers that takes labels and guidance, which `DDPMPipeline` does not: docs/diffusers.md.

    Args:
        model: one that diffusers can express: conditioning "bias", "scale_shift" or "label_attention", whose label MLP goes
            into unet/emb_net.safetensors as the Sequential(Linear, GELU, Linear) that it is. Weights keep their dtype; those
            that came in half precision and are what they were go back to it.
        path: a folder that does not exist yet, or is empty. class_names: K of them, all different; None: the labels as numbers.
        scheduler: the class of diffusers that samples with it, or all of a scheduler_config.json; None: the scheduler that the
            model came with, else DDPMScheduler. A class starts at timestep T - 1 and clamps x_0, as our samplers do; where the
            model came with a scheduler of another class, with that one's spacing and bounds.
    Raises: ValueError saying why, for a network or a scheduler that diffusers cannot express; FileExistsError.
    """
    folder, config = Path(path), model.config
    label_attention = config.conditioning == "label_attention"
    described = _described(config)
    names = [str(name) for name in (range(config.num_classes) if class_names is None else class_names)]
    if len(names) != config.num_classes:
        raise ValueError(f"there are {len(names)} class names for {config.num_classes} classes")
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"class_names has {shown(name)} {names.count(name)} times; each class needs a name of its own")
        if not name.isprintable():
            raise ValueError(f"class_names has {shown(name)}, with characters that cannot be printed")
    described_scheduler = scheduler_config(model.diffusion, scheduler)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} already exists and is not empty; choose another place")
    weights = as_they_came(model)
    mlp = {name.removeprefix(LABEL_MLP): weights.pop(name) for name in list(weights) if name.startswith(LABEL_MLP)}
    (folder / "unet").mkdir(parents=True, exist_ok=True)
    (folder / "scheduler").mkdir(exist_ok=True)
    _save_weights(folder / "unet" / WEIGHTS_NAME, weights)
    if mlp:
        _save_weights(folder / "unet" / LABEL_MLP_NAME, as_sequential(mlp, model.label_embedding.positions))
    _write_json(folder / "unet" / "config.json", described)
    _write_json(folder / "scheduler" / "scheduler_config.json", described_scheduler)
    null_id = config.null_label if config.has_null_label else None
    _write_json(folder / LABELS_NAME, {"label2id": {name: i for i, name in enumerate(names)}, "null_class_id": null_id})
    (folder / PIPELINE_NAME).write_bytes(_PIPELINE_SOURCE.read_bytes())
    index = {
        "_class_name": "DDPMPipeline",
        "scheduler": ["diffusers", described_scheduler["_class_name"]],
        "unet": ["diffusers", CONDITION_CLASS if label_attention else CLASS],
    }
    # Last: a folder with an index is a pipeline.
    _write_json(folder / "model_index.json", index)


def _described(config: UNetConfig) -> dict[str, Any]:
    """config.json, which says all that the network is. Raises: ValueError naming a field that diffusers' class lacks."""
    if config.conditioning == "label_attention":
        described, name = unet2d_condition_config(config), CONDITION_CLASS
        back = label_unet_config(
            described,
            num_classes=config.num_classes,
            label_hidden_dim=config.label_hidden_dim,
            has_null_label=config.has_null_label,
        )
    else:
        described, name = unet2d_config(config), CLASS
        back = unet_config(described, has_null_label=config.has_null_label)
    # Read as diffusers reads it, it must be the same network.
    own, theirs = _as_built(config), _as_built(back)
    for key in own:
        if own[key] != theirs[key]:
            raise ValueError(
                f"{key} is {own[key]!r}, which cannot be expressed in diffusers' {name}; there it would be {theirs[key]!r}"
            )
    return described


def _as_built(config: UNetConfig) -> dict[str, Any]:
    """The fields that a network is built by, levels' blocks spelt out, without those that have no effect in it."""
    levels, of_label = len(config.block_out_channels), config.conditioning == "label_attention"
    mid_attention = config.mid_block and config.mid_attention
    groups = config.norm_groups(config.block_out_channels[-1])
    if config.mid_attention_norm_groups is not None:
        groups = config.mid_attention_norm_groups
    plain = replace(
        config,
        attention_head_dim=None if of_label else config.attention_head_dim,
        mid_attention=mid_attention,
        label_dropout=0.0,  # of training, and in no file of diffusers
        num_timesteps=config.num_timesteps if config.time_embedding == "learned" else None,
    )
    unread = {"attention_resolutions", "down_block_types", "up_block_types", "resample_up", "mid_attention_norm_groups"}
    unread |= set() if of_label else {field.name for field in fields(config) if field.name.startswith("label_")}
    found = {field.name: getattr(plain, field.name) for field in fields(config) if field.name not in unread}
    found["resample"] = {
        way: [config.resampler(way, level) for level in range(levels) if level != (levels - 1 if way == "down" else 0)]
        for way in ("down", "up")
    }
    found["attention"] = {way: [config.attends(way, level) for level in range(levels)] for way in ("down", "up")}
    found["Skip blocks"] = {way: [config.skips(way, level) for level in range(levels)] for way in ("down", "up")}
    found["mid_attention_norm_groups"] = groups if mid_attention and not of_label else None
    return found


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _save_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    contiguous = {name: value.clone(memory_format=torch.contiguous_format) for name, value in weights.items()}
    safetensors.torch.save_file(contiguous, path, {"format": "pt"})
