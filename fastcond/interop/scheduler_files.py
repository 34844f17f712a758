"""Which process a network of diffusers was trained for: from its scheduler's file, else from what is said or usual."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastcond.config import PREDICTIONS, DiffusionConfig
from fastcond.diffusion import NoiseSchedule, from_diffusers_config
from fastcond.diffusion.schedule import SIGNAL_LEFT
from fastcond.diffusion.schedulers.config import NAME_OF, SETTINGS
from fastcond.interop.layout import Layout, names_scheduler
from fastcond.interop.scheduler_choice import check_learned_rows, config_of
from fastcond.interop.weights import naming
from fastcond.json_file import read_json
from fastcond.messages import shown

SCHEDULER_NAME = "scheduler_config.json"
# Schedulers whose runs are not followed, and whose betas are those of a scheduler that is.
_BETAS_OF = {
    "DDIMParallelScheduler": "DDPMScheduler",
    "DDPMParallelScheduler": "DDPMScheduler",
    "DEISMultistepScheduler": "DDPMScheduler",
    "DPMSolverSinglestepScheduler": "DDPMScheduler",
    "EulerAncestralDiscreteScheduler": "DDPMScheduler",
    "KDPM2AncestralDiscreteScheduler": "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler": "HeunDiscreteScheduler",
    "LMSDiscreteScheduler": "DDPMScheduler",
    "PNDMScheduler": "DDPMScheduler",
    "SASolverScheduler": "DDPMScheduler",
    "UniPCMultistepScheduler": "DDPMScheduler",
}
_OF_BETAS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
)
_CONSISTENCY = "CMStochasticIterativeScheduler"


def read_diffusion(
    layout: Layout,
    *,
    scheduler: Any = None,
    timesteps: int | None = None,
    prediction: str | None = None,
    rows: int | None = None,
) -> tuple[DiffusionConfig, list[str]]:
    """What the network's output means, and warnings: where no file says so, and where the process does not end in noise.

    Args:
        scheduler: a scheduler_config.json, a folder with one, its object, or a scheduler of diffusers; None: the model's own
            file, else DDPM's defaults.
        timesteps, prediction: in the place of what that says. rows: of a learned time embedding, one a timestep.
    Raises: FileNotFoundError; ValueError naming the file and what is wrong with it.
    """
    if prediction is not None and prediction not in PREDICTIONS:
        raise ValueError(f"prediction is {prediction!r}; choose one of {', '.join(PREDICTIONS)}")
    place, found = _scheduler_of(layout, scheduler)
    config = {"_class_name": "DDPMScheduler", **({} if rows is None else {"num_train_timesteps": rows})}
    config = config if found is None else dict(found)
    if timesteps is not None:
        config["num_train_timesteps"] = timesteps
    if prediction is not None:
        config["prediction_type"] = NAME_OF[prediction]  # type: ignore[index]
    with naming(place):
        config, schedule, meant = _understood(config)
        check_learned_rows(schedule.num_timesteps, rows)
    notes = []
    if found is None and timesteps is None:
        notes.append(
            f"{layout.named} comes with no scheduler, so diffusers' DDPM defaults are assumed: {schedule.num_timesteps} "
            f"timesteps, linear betas from 0.0001 to 0.02, prediction {meant}; if it was trained otherwise, give --timesteps and "
            "--prediction (in Python timesteps=, prediction= or scheduler=), or put its scheduler/ beside it"
        )
    left = float(schedule.alphas_cumprod[-1])
    if left > SIGNAL_LEFT and not str(config["_class_name"]).startswith("EDM"):
        notes.append(
            f"{place}: the last of {schedule.num_timesteps} timesteps keeps alphas_cumprod = {left:.3g}, a signal that sampling "
            "from pure noise lacks, so colours and brightness may be off; what helps is training with more timesteps, or betas "
            "rescaled to end in noise"
        )
    return DiffusionConfig(num_timesteps=schedule.num_timesteps, prediction=meant, scheduler=config), notes


def follows(config: Mapping[str, Any]) -> bool:
    """Whether the runs of a scheduler that `read_diffusion` understood are followed, and not its betas alone."""
    return config.get("_class_name") in SETTINGS


def _scheduler_of(layout: Layout, given: Any) -> tuple[Path, Mapping[str, Any] | None]:
    """What errors name, and the scheduler's object, or None where there is none."""
    if given is not None and not isinstance(given, (str, os.PathLike)):
        return Path("scheduler"), config_of(given)
    if given is not None:
        path = Path(given)
        places = [path] if not path.is_dir() else [path / SCHEDULER_NAME, path / "scheduler" / SCHEDULER_NAME]
    else:
        places = [layout.named / "scheduler" / SCHEDULER_NAME, layout.named / SCHEDULER_NAME]
        places += [] if layout.is_pipeline else [layout.beside / "scheduler" / SCHEDULER_NAME]
    for place in places:
        if place.is_file():
            return place, read_json(place, remedy="")
    if given is not None:
        raise FileNotFoundError(f"{places[0]} is missing; name a {SCHEDULER_NAME} or a folder with one")
    if names_scheduler(layout):
        raise FileNotFoundError(
            f"{layout.index} names a scheduler, and scheduler/{SCHEDULER_NAME} is missing; the folder is not whole"
        )
    return layout.named, None


def _understood(config: dict[str, Any]) -> tuple[dict[str, Any], NoiseSchedule, Any]:
    """The config, with what its class leaves to defaults where it is read by another's; its schedule and prediction."""
    name = config.get("_class_name")
    if name == _CONSISTENCY:
        raise ValueError(
            f"{name} is of a consistency model, which has no betas and which no sampler here draws from; draw with diffusers' "
            "ConsistencyModelPipeline, or load the network alone by scheduler={'_class_name': 'DDPMScheduler'}"
        )
    if not isinstance(name, str) or name not in _BETAS_OF:
        understood = from_diffusers_config(config)
        return config, understood.schedule, understood.prediction
    flow = config.get("use_flow_sigmas", False)
    if flow is not False:
        raise ValueError(f"{name} has use_flow_sigmas {shown(flow)}; flow matching is no diffusion of this kind")
    base = _BETAS_OF[name]
    betas = {key: config.get(key, SETTINGS[base][key].default) for key in _OF_BETAS if key in SETTINGS[base]}
    understood = from_diffusers_config({"_class_name": base, **betas})
    return {**betas, **config}, understood.schedule, understood.prediction


__all__ = ["SCHEDULER_NAME", "follows", "read_diffusion"]
