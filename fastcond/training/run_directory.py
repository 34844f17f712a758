"""A run on disk: config.json, class_labels.json, metrics.jsonl, samples/ and checkpoints that are whole or absent."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from fastcond.config import RunConfig, from_dict, to_dict
from fastcond.json_file import read_json
from fastcond.nn import ConditionalUNet
from fastcond.nn.initial_weights import NoInitialWeights

FORMAT_VERSION = 1
_PARTIAL = ".partial"


@dataclass(frozen=True)
class Run:
    """A loaded run: `model` (the EMA weights, eval mode), what it was configured with, its class names, and its step.

    weights_sha256: the sum of the file of the weights, which tells this model from any other.
    """

    model: ConditionalUNet = field(repr=False)
    config: RunConfig = field(repr=False)
    class_names: tuple[str, ...]
    step: int
    path: Path
    weights_sha256: str = field(default="", repr=False)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: named tensors a file ("model", "ema", "optimizer") and the state of the loop."""

    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return int(self.state["step"])


class RunDirectory:
    """Reads and writes one run's folder."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.metrics_path = self.path / "metrics.jsonl"
        self.samples_path = self.path / "samples"
        self.checkpoints_path = self.path / "checkpoints"

    def exists(self) -> bool:
        """Whether a run was begun here."""
        return (self.path / "config.json").exists()

    def create(self, config: RunConfig, class_names: Sequence[str]) -> None:
        """Begin a run. Raises FileExistsError where the folder holds anything but what a killed `create` left."""
        if self.exists():
            raise FileExistsError(f"{self.path} already holds a run; continue it with --resume, or choose another --out")
        if self.path.exists() and (not self.path.is_dir() or any(map(self._is_foreign, self.path.iterdir()))):
            raise FileExistsError(f"{self.path} already exists and is not empty; choose another --out")
        self.samples_path.mkdir(parents=True, exist_ok=True)
        self.checkpoints_path.mkdir(exist_ok=True)
        labels = {
            "label2id": {name: index for index, name in enumerate(class_names)},
            "null_class_id": config.network.null_label,
        }
        _write_whole(self.path / "class_labels.json", _json(labels))
        # Last, since a folder with a config is a run.
        self.update_config(config)

    def _is_foreign(self, entry: Path) -> bool:
        """Whether `create` did not make it."""
        if entry in (self.samples_path, self.checkpoints_path):
            return not entry.is_dir() or any(entry.iterdir())
        return entry.name != "class_labels.json" and not entry.name.startswith(_PARTIAL)

    def read_config(self) -> RunConfig:
        """Raises FileNotFoundError where there is no run, ValueError for a config of another version or a broken one."""
        if not self.exists():
            raise FileNotFoundError(
                f"there is no run in {self.path}; make one with: python -m fastcond.train --out {shlex.quote(str(self.path))}"
            )
        values = read_json(self.path / "config.json")
        _require_version(values, self.path / "config.json")
        try:
            return from_dict(RunConfig, {key: value for key, value in values.items() if key != "format_version"})
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.path / 'config.json'}: {error}") from error

    def update_config(self, config: RunConfig) -> None:
        """Write config.json, anew where a run goes on with another budget."""
        _write_whole(self.path / "config.json", _json({"format_version": FORMAT_VERSION, **to_dict(config)}))

    def read_class_names(self) -> tuple[str, ...]:
        """The names by label."""
        path = self.path / "class_labels.json"
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing; the run's folder is not whole")
        found = read_json(path).get("label2id")
        label_of: dict[str, Any] = found if isinstance(found, dict) else {}
        numbers = list(label_of.values())
        if not numbers or any(type(n) is not int for n in numbers) or sorted(numbers) != list(range(len(numbers))):
            raise ValueError(f"{path} does not number its classes 0 to K-1 in label2id")
        return tuple(sorted(label_of, key=lambda name: label_of[name]))

    def checkpoint_steps(self) -> list[int]:
        """Steps of the checkpoints that are there, in order."""
        if not self.checkpoints_path.is_dir():
            return []
        return sorted(int(entry.name) for entry in self.checkpoints_path.iterdir() if entry.name.isdecimal())

    def write_checkpoint(self, step: int, checkpoint: Checkpoint) -> bool:
        """Write a checkpoint; returns False, having done nothing, where that step's is there already.

        It is written under another name, flushed, and renamed: whatever happens, a checkpoint with its right name is whole and
        the ones before it are untouched. Raises OSError where the disk does not take it.
        """
        final = self.checkpoints_path / f"{step:08d}"
        if final.exists():
            return False
        partial = self.checkpoints_path / f"{_PARTIAL}-{step:08d}"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            sums = {}
            for name, tensors in checkpoint.tensors.items():
                file = f"{name}.safetensors"
                content = safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
                sums[file] = hashlib.sha256(content).hexdigest()
                _write_flushed(partial / file, content)
            state = {"format_version": FORMAT_VERSION, **checkpoint.state, "sha256": sums}
            _write_flushed(partial / "state.json", _json(state))
            _flush_folder(partial)
            partial.rename(final)
            _flush_folder(self.checkpoints_path)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            steps = self.checkpoint_steps()
            kept = f"the checkpoint of step {steps[-1]} is whole" if steps else "no checkpoint was written before"
            reason = error.strerror or str(error)
            raise OSError(f"could not write checkpoint {final}: {reason}; {kept}; make room, then go on with --resume") from error
        return True

    def remove_checkpoint(self, step: int) -> None:
        """Remove a checkpoint; half-removed, it does not look whole."""
        partial = self.checkpoints_path / f"{_PARTIAL}-{step:08d}"
        (self.checkpoints_path / f"{step:08d}").rename(partial)
        shutil.rmtree(partial)

    def read_checkpoint(self, step: int | None = None, files: Sequence[str] = ("model", "ema", "optimizer")) -> Checkpoint:
        """Read the checkpoint of `step`, by default the last.

        Raises: FileNotFoundError where there is none; ValueError for another version, or a file that is missing, truncated or
        altered (its sha256 sum is not the one in state.json).
        """
        steps = self.checkpoint_steps()
        if not steps:
            raise FileNotFoundError(f"{self.path} has no checkpoint yet; train it with: {self.resume_command()}")
        if step is not None and step not in steps:
            raise FileNotFoundError(f"{self.path} has no checkpoint of step {step}; there are {', '.join(map(str, steps))}")
        folder = self.checkpoints_path / f"{steps[-1] if step is None else step:08d}"
        state = read_json(folder / "state.json")
        _require_version(state, folder / "state.json")
        if type(state.get("step")) is not int:
            raise ValueError(f"{folder / 'state.json'} has no step; it is not whole")
        sums = state.get("sha256")
        remedy = f"remove {folder} to go back to the checkpoint before" if len(steps) > 1 else "train the run again"
        tensors = {}
        for name in files:
            path = folder / f"{name}.safetensors"
            if not path.exists():
                raise ValueError(f"{path} is missing; {remedy}")
            content = path.read_bytes()
            if not isinstance(sums, dict) or hashlib.sha256(content).hexdigest() != sums.get(path.name):
                raise ValueError(f"{path} is damaged: its {len(content)} bytes do not have the sum in state.json; {remedy}")
            try:
                tensors[name] = safetensors.torch.load(content)
            except SafetensorError as error:
                raise ValueError(f"{path} is not a safetensors file ({error}); {remedy}") from error
        return Checkpoint(tensors, state)

    def remove_partial_checkpoints(self) -> None:
        """Remove what a killed run left half-written."""
        for entry in self.checkpoints_path.glob(f"{_PARTIAL}-*"):
            shutil.rmtree(entry, ignore_errors=True)

    def resume_command(self) -> str:
        """The command that goes on with this run."""
        return f"python -m fastcond.train --out {shlex.quote(str(self.path))} --resume"


def load_run(path: str | Path, *, step: int | None = None, device: str | torch.device = "cpu") -> Run:
    """Load a trained run for sampling.

    Args: path: the run's folder. step: which checkpoint, by default the last. device: where the model goes.
    Returns: a `Run`; its `model` has the EMA weights and is in eval mode.
    Raises: FileNotFoundError where there is no run or no checkpoint, ValueError for files that are damaged or of another version.
    """
    directory = RunDirectory(path)
    config = directory.read_config()
    checkpoint = directory.read_checkpoint(step, files=("ema",))
    # No time goes into initial weights that the checkpoint replaces.
    with torch.device("meta"), NoInitialWeights():
        model = ConditionalUNet(config.network, config.diffusion)
    try:
        model.load_state_dict(dict(checkpoint.tensors["ema"]), assign=True)
    except RuntimeError as error:
        first = " ".join(str(error).split())
        raise ValueError(f"the checkpoint in {directory.path} does not fit its config.json: {first}") from error
    model = model.requires_grad_(False).eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    class_names = directory.read_class_names()
    if len(class_names) != config.network.num_classes:
        raise ValueError(f"{directory.path} names {len(class_names)} classes, its network has {config.network.num_classes}")
    weights_sha256 = str(checkpoint.state["sha256"]["ema.safetensors"])
    return Run(model, config, class_names, checkpoint.step, directory.path, weights_sha256)


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _require_version(values: Mapping[str, Any], path: Path) -> None:
    version = values.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {version}; this fastcond reads version {FORMAT_VERSION}; use the one that wrote it"
        )


def _write_flushed(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _write_whole(path: Path, content: bytes) -> None:
    """Replace a file by one that is whole."""
    partial = path.with_name(_PARTIAL + path.name)
    _write_flushed(partial, content)
    partial.replace(path)
    _flush_folder(path.parent)


def _flush_folder(path: Path) -> None:
    """Make a rename in the folder durable. Windows has no such call and needs none."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
