"""What the entries of a scheduler_config.json may be: one small check a kind of entry, each naming what it found."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastcond.messages import shown


@dataclass(frozen=True)
class Setting:
    """default: diffusers'. problem: of a value, what is wrong with it, or None."""

    default: Any
    problem: Callable[[Any], str | None]


# Of float32, which a sampler's numbers are in the end. JSON has whole numbers of any size, of which no float can be made.
_LARGEST = (2 - 2**-23) * 2.0**127


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def flag(default: bool) -> Setting:
    return Setting(default, lambda value: None if isinstance(value, bool) else "true or false is needed")


def number(default: float | None, low: float = -math.inf, high: float = math.inf, *, above: bool = False) -> Setting:
    """In [low, high], or (low, high] where `above`; None too where it is the default. Not infinite but where a bound is."""
    bounds = f"{'above' if above else 'at least'} {low:g}" + (f", at most {high:g}" if high < math.inf else "")

    def problem(value: Any) -> str | None:
        if value is None and default is None:
            return None
        fits = _is_number(value) and low <= value <= high and not (above and value == low) and value < math.inf
        if fits and abs(value) > _LARGEST:
            return f"a number of at most {_LARGEST:g} is needed"
        return None if fits else f"a number {bounds} is needed"

    return Setting(default, problem)


def lower_bound() -> Setting:
    """A number or -inf, which some writers of JSON put into a string."""

    def problem(value: Any) -> str | None:
        value = -math.inf if value == "-inf" else value
        fits = _is_number(value) and (value == -math.inf or abs(value) <= _LARGEST)
        return None if fits else "a number or -inf is needed"

    return Setting(-math.inf, problem)


def count(default: int, low: int, high: int = 2**31 - 1) -> Setting:
    def problem(value: Any) -> str | None:
        fits = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        return None if fits else f"a whole number from {low} to {high} is needed"

    return Setting(default, problem)


def choice(default: Any, *others: Any, why: str = "") -> Setting:
    choices = (default, *others)

    def problem(value: Any) -> str | None:
        # Not `in`: 1 == True, and an array is no truth value.
        if any(type(value) is type(known) and value == known for known in choices):
            return None
        return why or f"choose one of {', '.join(str(known) for known in choices)}"

    return Setting(default, problem)


def betas(default: None = None) -> Setting:
    def problem(value: Any) -> str | None:
        fits = value is None or (isinstance(value, (list, tuple)) and value and all(_is_number(b) and 0 <= b <= 1 for b in value))
        return None if fits else "a list of numbers in [0, 1] is needed"

    return Setting(default, problem)


# Written by old versions of diffusers, and without meaning today.
_LEGACY = {"tensor_format": "pt", "timestep_values": None}


def checked(name: str, known: Mapping[str, Setting], config: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a scheduler, those that the config lacks by their defaults.

    Raises: ValueError for the first that is unknown or cannot be followed, naming it and its value.
    """
    for key, value in config.items():
        if not isinstance(key, str):
            raise ValueError(f"{name} has the entry {shown(key)}, {shown(value)}, whose name is no text")
        if key.startswith("_") or (key in _LEGACY and value == _LEGACY[key]):
            continue
        if key not in known:
            raise ValueError(f"{name} has {key} {shown(value)}, which is no setting of it; take it out")
        problem = known[key].problem(value)
        if problem is not None:
            raise ValueError(f"{name} has {key} {shown(value)}; {problem}")
    return {key: config.get(key, setting.default) for key, setting in known.items()}
