"""Weights of other libraries' files: safetensors, whole or in shards, and PyTorch's own format without running what it holds."""

from __future__ import annotations

import json
import pickle
import re
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from fastcond.config import DiffusionConfig, UNetConfig
from fastcond.messages import printable, shown
from fastcond.nn import ConditionalUNet
from fastcond.nn.initial_weights import NoInitialWeights

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
    struct.error,
)
_STEM = "diffusion_pytorch_model"
# The file of a variant, whole or as an index of shards; the best to read come first.
_FILES = tuple(
    re.compile(rf"{_STEM}{pattern}")
    for kind in ("safetensors", "bin")
    for pattern in (rf"(?:\.([^.]+))?\.{kind}", rf"\.{kind}\.index(?:\.([^.]+))?\.json")
)
_IS_SHARD = re.compile(r"-\d{5}-of-\d{5}")
# What is read as the numbers of a network. Of eight bits, they are cast numbers; formats with scales beside them are others.
_NUMBERS = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
_NUMBERS |= {torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz}
# Of a network whose weights came narrower than they are computed with: their dtypes, by name.
_CAME_AS: WeakKeyDictionary[ConditionalUNet, dict[str, torch.dtype]] = WeakKeyDictionary()
_LEGACY_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_LEGACY = re.compile(r"^(.*attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)$")


def read_folder(folder: Path, variant: str | None = None) -> dict[str, Tensor]:
    """The weights in a model's folder as diffusers writes it, with today's names, on the CPU, in the dtypes of the file.

    Args: variant: such as "fp16", a part of the file's name; None: the file or shards without one, else the only ones there are.
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
    for name, value in loaded.items():
        if not isinstance(name, str):
            raise ValueError(
                f"{path} holds a tensor by the name {shown(name)}, which is no text; it is no file of a network's weights"
            )
        if value.is_nested or value.layout != torch.strided or value.is_meta:
            kind = "nested" if value.is_nested else "without numbers" if value.is_meta else str(value.layout)
            raise ValueError(f"{path}: {printable(name)[:200]} is a tensor of another kind ({kind}); save it as a plain one")
    return dict(loaded)


@contextmanager
def naming(path: Path, unsaid: Sequence[str] = ()) -> Iterator[None]:
    """Begin a ValueError with the file that it is about, and end it with what its config left to diffusers' defaults."""
    try:
        yield
    except ValueError as error:
        defaults = f"; its config.json does not say {', '.join(unsaid)}: diffusers' defaults were taken" if unsaid else ""
        raise ValueError(f"{path}: {error}{defaults}") from error


def build(config: UNetConfig, diffusion: DiffusionConfig, weights: Mapping[str, Tensor]) -> ConditionalUNet:
    """The network of a config, with copies of the weights, in float32 and eval mode, on the CPU.

    Nothing is allocated before names and shapes are known to fit, whatever sizes a config claims.

    Raises: ValueError naming what is missing, not expected, of another shape, no floating-point numbers or not finite.
    """
    levels, layers = len(config.block_out_channels), config.layers_per_block
    if levels * layers > len(weights):
        raise ValueError(f"it does not fit its config, {levels} levels of {layers} layers: the weights are {len(weights)} in all")
    with torch.device("meta"), NoInitialWeights():
        own = ConditionalUNet(config, diffusion).state_dict()
    fitting = _fitting(own, weights)
    with NoInitialWeights():
        model = ConditionalUNet(config, diffusion)
    model.load_state_dict(fitting)
    narrow = {name: value.dtype for name, value in weights.items() if value.element_size() < fitting[name].element_size()}
    if narrow:
        _CAME_AS[model] = narrow
    return model.requires_grad_(False).eval()


def as_they_came(model: ConditionalUNet) -> dict[str, Tensor]:
    """A network's weights on the CPU, contiguous; in the narrower dtypes of the file that they came from, where all of them still
    are numbers of these, as they are until they are changed.
    """
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    narrow = {name: weights[name].to(dtype) for name, dtype in _CAME_AS.get(model, {}).items()}
    unchanged = all(torch.equal(value.to(weights[name].dtype), weights[name]) for name, value in narrow.items())
    return {**weights, **narrow} if unchanged else weights


def _fitting(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights in the dtypes of a module's own. Raises: ValueError as `build`."""
    missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing or extra:
        sides = [(names, what) for names, what in ((missing, "missing"), (extra, "unknown")) if names]
        found = [f"{len(names)} {what} ({', '.join(printable(name)[:200] for name in names[:3])})" for names, what in sides]
        raise ValueError(f"it does not fit its config: of the weights are {' and '.join(found)}")
    cast: dict[str, Tensor] = {}
    for name, value in weights.items():
        if value.shape != own[name].shape:
            raise ValueError(f"{name} is {list(value.shape)}; its config says {list(own[name].shape)}")
        cast[name] = as_numbers(name, value, own[name].dtype)
    return cast


def as_numbers(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight in a network's dtype. Raises: ValueError for no floating-point numbers, or such that are not finite in it."""
    if value.dtype not in _NUMBERS:
        raise ValueError(f"{name} is {value.dtype}, no weights")
    cast = value.to(dtype)
    if not bool(torch.isfinite(cast).all()):
        too_large = value.dtype == torch.float64 and bool(torch.isfinite(value).all())
        why = "are too large for float32" if too_large else "are not finite; its training went wrong, or the file"
        raise ValueError(f"{name} holds numbers that {why}")
    return cast


def _reason(error: Exception) -> str:
    """What was wrong with a file, without PyTorch's advice to load it in full, which would run what it holds."""
    text = printable(" ".join(str(error).split()))
    if isinstance(error, pickle.UnpicklingError):
        named = re.search(r"GLOBAL (\S+)", text)
        found = f"it names {named[1][:200]}, code that would run" if named else "it is a pickle of something else"
        return f"{found}; nothing of it was run; save the weights as safetensors"
    return text.split(". ")[0][:200] if isinstance(error, RuntimeError | SafetensorError) else "it cannot be read as one"


def _find(folder: Path, variant: str | None) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    by_variant: dict[str | None, Path] = {}
    names = sorted(path.name for path in folder.iterdir() if path.name.startswith(f"{_STEM}."))
    for pattern in _FILES:
        for name in names:
            match = pattern.fullmatch(name)
            if match is not None and not _IS_SHARD.search(match[1] or ""):
                by_variant.setdefault(match[1], folder / name)
    if variant is None and None not in by_variant and len(by_variant) == 1:
        variant = next(iter(by_variant))
    if variant in by_variant:
        return by_variant[variant]
    there = f"; there are {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else ""
    others = sorted(other for other in by_variant if other is not None)
    choose = f': choose one by variant="{others[0]}" (--variant {others[0]})' if others else ""
    raise FileNotFoundError(f"{folder} holds no {_STEM}{'' if variant is None else f'.{variant}'}.safetensors{there}{choose}")


def _shards(index: Path) -> list[Path]:
    """The files that an index names, which lie beside it."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is no index of shards: {shown(error)}") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{index} names {shown(name)}, which is not a file beside it")
    return [index.parent / name for name in names]


def _modern(name: str) -> str:
    """Attention's names since diffusers 0.14."""
    match = _LEGACY.match(name)
    return f"{match[1]}.{_LEGACY_ATTENTION[match[2]]}.{match[3]}" if match else name
