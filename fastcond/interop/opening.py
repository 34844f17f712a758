"""A folder to sample from, whoever wrote it: a run of ours, or a model or pipeline of diffusers."""

from __future__ import annotations

import hashlib
import shlex
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fastcond.nn import ConditionalUNet
from fastcond.training import load_run


@dataclass(frozen=True)
class Opened:
    """What is sampled from.

    Attributes:
        step: of the checkpoint; None where there are none. weights_sha256: tells these weights from any other.
        knows_null_label: whether it was trained to answer the null label, which guidance compares with.
        sampler: the default.
    """

    model: ConditionalUNet = field(repr=False)
    class_names: tuple[str, ...]
    step: int | None
    weights_sha256: str
    knows_null_label: bool
    sampler: str


def open_model(path: str | Path, *, step: int | None = None, device: str | torch.device = "cpu", **settings: Any) -> Opened:
    """Load a run's checkpoint `step`, by default the last, or a folder of diffusers, in eval mode.

    Args: settings: of `load_diffusers`, such as null_label; None is as not given. Those of a run are in its config.json.
    Raises: FileNotFoundError where there is none, ValueError for one that is damaged, or whose step does not exist, and for
        settings that a run does not have.
    """
    folder = Path(path)
    settings = {name: value for name, value in settings.items() if value is not None}
    if folder.is_file():
        command = f"python -m fastcond.convert {shlex.quote(str(folder))} FOLDER"
        hint = f"; a checkpoint of guided-diffusion is converted first: {command}" if folder.suffix == ".pt" else ""
        raise ValueError(f"{folder} is a file; name the folder with config.json and weights, such as {folder.parent}{hint}")
    if (folder / "config.json").is_dir():
        raise ValueError(f"{folder / 'config.json'} is a folder; a model's config.json is a file")
    if not is_diffusers_folder(folder):
        if folder.is_dir() and not (folder / "config.json").exists():
            raise FileNotFoundError(
                f"there is no run in {folder}, and no model of diffusers: it holds neither config.json nor model_index.json"
            )
        if not folder.exists():
            raise FileNotFoundError(
                f"there is no run in {folder}, the folder does not exist; make one with: python -m fastcond.train --out "
                f"{shlex.quote(str(folder))}; a model of diffusers is named by its folder on this machine, nothing is downloaded"
            )
        if settings:
            name = next(iter(settings))
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag} ({name}) is of a model of diffusers; {folder} is a run of fastcond, so leave it out")
        run = load_run(folder, step=step, device=device)
        knows = run.config.training.label_dropout > 0
        return Opened(run.model, run.class_names, run.step, run.weights_sha256, knows, "ddpm")
    if step is not None:
        raise ValueError(f"{folder} is a folder of diffusers, which has no checkpoints; leave out --checkpoint")
    # Only now: a run of ours does not wait for it.
    from fastcond.interop.diffusers import class_names_of, load_diffusers
    from fastcond.interop.scheduler_files import follows

    model = load_diffusers(folder, **settings).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    null_row = model.config.has_null_label and model.config.class_embedding == "table"
    null_row = null_row and model.config.conditioning != "label_attention"  # whose null label is a row of zeros
    names = class_names_of(folder, model.config.num_classes, null_row=null_row)
    scheduler = model.diffusion.scheduler or {}
    sampler = "scheduler" if follows(scheduler) else "ddim"
    if sampler != "scheduler":
        warnings.warn(
            f"{folder} comes with {scheduler.get('_class_name')}, whose steps are not followed here; its betas are taken, and "
            f"{sampler} draws in its place unless another sampler is named",
            stacklevel=2,
        )
    return Opened(model, names, None, digest.hexdigest(), model.config.has_null_label, sampler)


def is_diffusers_folder(folder: Path) -> bool:
    """Whether it holds a pipeline, or a model that `load_diffusers` can tell by its config."""
    if (folder / "model_index.json").is_file():
        return True
    config = folder / "config.json"
    return config.is_file() and '"_class_name"' in config.read_text(encoding="utf-8", errors="replace")
