"""Weights of other libraries' files: safetensors, whole or in shards, and PyTorch's own format without running what it holds."""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

# What a file that is cut short, altered, or none at all makes the readers raise, as found by altering files at random.
_DAMAGED = (
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    OverflowError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)
_STEM = "diffusion_pytorch_model"
_LEGACY_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_LEGACY = re.compile(r"^(.*attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)$")


def read_folder(folder: Path, variant: str | None = None) -> dict[str, Tensor]:
    """The weights in a model's folder as diffusers writes it, with today's names, on the CPU, in the dtypes of the file.

    Args: variant: such as "fp16", a part of the file's name; None: the file without one, else the only one there is.
    Raises: FileNotFoundError where there is none, ValueError for a file that is damaged or no such file.
    """
    path = _find(folder, variant)
    if path.suffix == ".json":
        weights: dict[str, Tensor] = {}
        for shard in _shards(path):
            weights.update(read_file(shard))
    else:
        weights = read_file(path)
    return {_modern(name): value for name, value in weights.items()}


def read_file(path: Path) -> dict[str, Tensor]:
    """A file of named tensors. What a file in PyTorch's own format would run when it is loaded is refused.

    Raises: FileNotFoundError, ValueError.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; the folder is not whole")
    try:
        if path.suffix == ".safetensors":
            loaded: Any = safetensors.torch.load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of pickle's protocol, about files that are refused next
                loaded = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        raise ValueError(f"{path} is no whole file of weights, or holds more than weights: {_reason(error)}") from error
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ValueError(f"{path} holds {type(loaded).__name__}, not a dictionary of tensors")
    return dict(loaded)


@contextmanager
def naming(path: Path, unsaid: Sequence[str] = ()) -> Iterator[None]:
    """Begin a ValueError with the file that it is about, and end it with what its config left to diffusers' defaults."""
    try:
        yield
    except ValueError as error:
        defaults = f"; its config.json does not say {', '.join(unsaid)}: diffusers' defaults were taken" if unsaid else ""
        raise ValueError(f"{path}: {error}{defaults}") from error


def load_into(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into a module of the same names and shapes, in the module's dtype.

    Raises: ValueError naming what is missing, not expected, of another shape, no floating-point numbers or not finite.
    """
    own = module.state_dict()
    missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing or extra:
        found = [
            f"{len(names)} {what} ({', '.join(names[:3])})" for names, what in ((missing, "missing"), (extra, "unknown")) if names
        ]
        raise ValueError(f"it does not fit its config: of the weights are {' and '.join(found)}")
    for name, value in weights.items():
        if value.shape != own[name].shape:
            raise ValueError(f"{name} is {list(value.shape)}; its config says {list(own[name].shape)}")
        if not value.is_floating_point():
            raise ValueError(f"{name} is {value.dtype}, no weights")
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} holds numbers that are not finite; its training went wrong, or the file")
    module.load_state_dict(dict(weights))


def _reason(error: Exception) -> str:
    """What was wrong with a file, without PyTorch's advice to load it in full, which would run what it holds."""
    text = " ".join(str(error).split())
    if isinstance(error, pickle.UnpicklingError):
        named = re.search(r"GLOBAL (\S+)", text)
        found = f"it names {named[1]}, code that would run" if named else "it is a pickle of something else"
        return f"{found}; nothing of it was run; save the weights as safetensors"
    return text.split(". ")[0][:200] if isinstance(error, RuntimeError | SafetensorError) else "it cannot be read as one"


def _find(folder: Path, variant: str | None) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    dotted = "" if variant is None else f".{variant}"
    names = [f"{_STEM}{dotted}.safetensors", f"{_STEM}.safetensors.index{dotted}.json", f"{_STEM}{dotted}.bin"]
    names.append(f"{_STEM}.bin.index{dotted}.json")
    for name in names:
        if (folder / name).exists():
            return folder / name
    others = sorted(path for path in folder.glob(f"{_STEM}.*") if path.suffix in (".safetensors", ".bin"))
    if variant is None and len(others) == 1:
        return others[0]
    there = f"; there are {', '.join(path.name for path in others)}" if others else ""
    raise FileNotFoundError(f"{folder} holds no {names[0]}{there}")


def _shards(index: Path) -> list[Path]:
    """The files that an index names, which lie beside it."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is no index of shards: {error!r}") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{index} names {name!r}, which is not a file beside it")
    return [index.parent / name for name in names]


def _modern(name: str) -> str:
    """Attention's names since diffusers 0.14."""
    match = _LEGACY.match(name)
    return f"{match[1]}.{_LEGACY_ATTENTION[match[2]]}.{match[3]}" if match else name
