"""Which scheduler_config.json is written beside a network: the model's own, or one of a class that samples as ours do."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

from fastcond.config import DiffusionConfig
from fastcond.diffusion import NoiseSchedule, from_diffusers_config, to_diffusers_config
from fastcond.diffusion.schedulers.config import SETTINGS

# What makes a class of diffusers do as our samplers do: begin at T - 1, and keep x_0 in [-1, 1] where the class can.
# DPM-Solver has no clip_sample; thresholding with a largest value of 1 is the same clamp.
_CLIP = {"clip_sample": True, "clip_sample_range": 1.0}
_AS_OURS: Mapping[str, Mapping[str, Any]] = {
    "DDPMScheduler": _CLIP,
    "DDIMScheduler": _CLIP,
    "HeunDiscreteScheduler": _CLIP,
    "DPMSolverMultistepScheduler": {"thresholding": True, "sample_max_value": 1.0},
    "EulerDiscreteScheduler": {},
}
_SPACING = {"timestep_spacing": "trailing", "steps_offset": 0}
_DYNAMIC = ("thresholding", "dynamic_thresholding_ratio", "sample_max_value")


def config_of(scheduler: Any) -> Mapping[str, Any]:
    """A scheduler_config.json's object, with `_class_name`, of what users have at hand.

    Args: scheduler: such an object, a scheduler of diffusers, or its `config`, which names no class where the scheduler was made
        by hand: then the class is told by its settings.
    Raises: ValueError for anything else. Whether the class and its settings can be followed is not looked at.
    """
    found = getattr(scheduler, "config", None)
    if not isinstance(scheduler, Mapping) and isinstance(found, Mapping):
        if not hasattr(scheduler, "step"):  # a `PipelineScheduler`, which is its config
            return config_of(found)
        # from_config() keeps what the class does not take, for the next class.
        taken, name = inspect.signature(type(scheduler).__init__).parameters, type(scheduler).__name__
        return {"_class_name": name, **{key: _plain(found[key]) for key in found if key in taken}}
    if not isinstance(scheduler, Mapping):
        raise ValueError(f"scheduler is {type(scheduler).__name__}; give a scheduler of diffusers, or its config")
    if "_class_name" in scheduler or "_use_default_values" not in scheduler:
        return {key: _plain(value) for key, value in scheduler.items()}
    settings = {key: _plain(value) for key, value in scheduler.items() if not key.startswith("_")}
    names = [name for name, known in SETTINGS.items() if known.keys() == settings.keys()]
    if len(names) != 1:
        raise ValueError("the scheduler's config has no _class_name, and its settings do not tell; give the scheduler itself")
    return {"_class_name": names[0], **settings}


def check_learned_rows(num_timesteps: int, rows: int | None) -> None:
    """Raises: ValueError for a scheduler of more timesteps than a learned time embedding has rows; None: there is none."""
    if rows is not None and num_timesteps > rows:
        raise ValueError(
            f"num_train_timesteps is {num_timesteps}; the network's learned time embedding has {rows} rows, one a "
            "timestep, so at most as many are needed"
        )


def _plain(value: Any) -> Any:
    """As JSON has it: trained_betas may be an array."""
    return value.tolist() if hasattr(value, "tolist") else value


def scheduler_config(diffusion: DiffusionConfig, scheduler: str | Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A scheduler_config.json's object for a model.

    Args: scheduler: a class of diffusers, or the object itself; None: the one that the model came with, else DDPMScheduler. Of
        a model that came with one of another class, the spacing and the bounds of x_0 are kept; of [-1, 1], which Euler does
        not have, a warning tells.
    Raises: ValueError for a class that is not known, or cannot be told what the model needs.
    """
    if isinstance(scheduler, Mapping):
        from_diffusers_config(scheduler)
        return dict(scheduler)
    own = diffusion.scheduler
    if scheduler is not None and scheduler not in SETTINGS:
        raise ValueError(f"scheduler is {scheduler!r}; schedulers that can be written are {', '.join(SETTINGS)}")
    if own is not None and scheduler in (None, own["_class_name"]):
        return dict(own)
    name = scheduler or "DDPMScheduler"
    if own is not None and str(own["_class_name"]).startswith("EDM"):
        raise ValueError(f"the model came with {own['_class_name']}, whose networks {name} does not sample; leave it out")
    if name not in _AS_OURS:
        raise ValueError(f"scheduler is {name}, which samples networks of EDM only; choose one of {', '.join(_AS_OURS)}")
    variance = diffusion.variance if own is None else str(own.get("variance_type"))
    learned = {"variance_type": variance} if variance.startswith("learned") else {}
    if learned and "variance_type" not in SETTINGS[name]:
        raise ValueError(f"diffusers' {name} takes no network that predicts a variance; save with DDPMScheduler")
    grid = dict(_SPACING) if own is None else {key: value for key, value in _all_of(own).items() if key in _SPACING}
    bounds = _AS_OURS[name] if own is None else _bounds_of(own, name)
    schedule = NoiseSchedule.from_config(diffusion)
    # diffusers' files have settings that are off too, which another class may not know.
    settings = {key: value for key, value in schedule.settings.items() if value is not None and value is not False}
    schedule = NoiseSchedule(schedule.alphas_cumprod, settings)
    return to_diffusers_config(schedule, diffusion.prediction, name, **grid, **bounds, **learned)


def _bounds_of(own: Mapping[str, Any], name: str) -> dict[str, Any]:
    """How `own` keeps x_0 in bounds, in the words of class `name`. Of Euler, which has none, a warning tells."""
    kept, known = _all_of(own), SETTINGS[name]
    if kept.get("thresholding") and "thresholding" in known:
        return {key: kept[key] for key in _DYNAMIC}
    off = {"clip_sample": False} if "clip_sample" in known else {}
    if kept.get("thresholding"):  # to Heun, which has no thresholding: a clamp where it is one
        largest = kept["sample_max_value"]
    elif kept.get("clip_sample"):
        largest = kept["clip_sample_range"]
    else:
        return off
    if largest != 1.0 and (kept.get("thresholding") or "clip_sample" not in known):
        raise ValueError(f"diffusers' {name} cannot bound x_0 as the model's {own['_class_name']} does, by {largest:g}")
    if not _AS_OURS[name]:
        warnings.warn(
            f"the model's {own['_class_name']} keeps x_0 in [-1, 1], and diffusers' {name} has no bounds: it is written without, "
            "so images may be brighter or darker",
            stacklevel=4,
        )
    clip = {"clip_sample": True, "clip_sample_range": float(largest)}
    return clip if "clip_sample" in known else dict(_AS_OURS[name])


def _all_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's settings, those that its config leaves out too, where its class is known."""
    return {**{key: spec.default for key, spec in SETTINGS.get(config["_class_name"], {}).items()}, **config}
