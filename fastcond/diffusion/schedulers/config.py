"""scheduler_config.json of diffusers -> schedule, prediction and sampler, and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from fastcond.config import Prediction
from fastcond.diffusion.samplers.edm import edm
from fastcond.diffusion.schedule import NoiseSchedule
from fastcond.diffusion.schedulers.ancestral import ddim_scheduler, ddpm_scheduler
from fastcond.diffusion.schedulers.bounds import bounded
from fastcond.diffusion.schedulers.grids import SigmaSpacing
from fastcond.diffusion.schedulers.in_sigma import FEW_STEPS, dpm_solver_scheduler, euler_scheduler, heun_scheduler
from fastcond.diffusion.schedulers.settings import Setting, betas, checked, choice, count, flag, lower_bound, number
from fastcond.diffusion.step_table import StepTable
from fastcond.messages import shown

PREDICTION_OF: Mapping[str, Prediction] = {"epsilon": "eps", "v_prediction": "v", "sample": "x_0"}
NAME_OF: Mapping[Prediction, str] = {ours: theirs for theirs, ours in PREDICTION_OF.items()}


class DiffusersScheduler(NamedTuple):
    """What a scheduler_config.json says.

    sampler: (schedule, steps, *, prediction) -> StepTable; of DDIM also eta, rederive_eps and previous, which diffusers takes at
        a call of step() or not at all.
    """

    schedule: NoiseSchedule
    prediction: Prediction
    sampler: Callable[..., StepTable]


def _schedule_settings(*schedules: str, start: float = 1e-4, end: float = 0.02, rescale: bool = True) -> dict[str, Setting]:
    settings = {
        "num_train_timesteps": count(1000, 1, 1_000_000),
        "beta_start": number(start, 0.0, 1.0),
        "beta_end": number(end, 0.0, 1.0),
        "beta_schedule": choice("linear", "scaled_linear", "squaredcos_cap_v2", *schedules),
        "trained_betas": betas(),
        "prediction_type": choice("epsilon", "v_prediction", "sample"),
        "steps_offset": count(0, 0),
    }
    return settings | ({"rescale_betas_zero_snr": flag(False)} if rescale else {})


_SPACINGS = ("leading", "trailing", "linspace")
_THRESHOLDING = {
    "thresholding": flag(False),
    "dynamic_thresholding_ratio": number(0.995, 0.0, 1.0, above=True),
    "sample_max_value": number(1.0, 0.0, above=True),
}
_CLIP = {"clip_sample_range": number(1.0, 0.0, above=True)}
_NO_SCIPY = choice(False, why="beta sigmas are not built here; use karras or exponential sigmas")
_SIGMAS = {"use_karras_sigmas": flag(False), "use_exponential_sigmas": flag(False), "use_beta_sigmas": _NO_SCIPY}
_SOLVER = {
    "solver_order": choice(2, 1, why="a step table keeps one earlier prediction, so 1 or 2"),
    "algorithm_type": choice(
        "dpmsolver++", "sde-dpmsolver++", why="only dpmsolver++ and sde-dpmsolver++ keep x_0, as a step table does"
    ),
    "solver_type": choice("midpoint", "heun"),
    "lower_order_final": flag(True),
    "euler_at_final": flag(False),
    "final_sigmas_type": choice("zero", "sigma_min"),
}
_NO_FLOW = "flow matching is no diffusion of this kind"
_EDM = {
    "num_train_timesteps": count(1000, 1, 1_000_000),
    "sigma_min": number(0.002, 0.0, above=True),
    "sigma_max": number(80.0, 0.0, above=True),
    "sigma_data": number(0.5, 0.0, above=True),
    "sigma_schedule": choice("karras", "exponential"),
    "prediction_type": choice("epsilon", "v_prediction"),
    "rho": number(7.0, 0.0, above=True),
}

SETTINGS: Mapping[str, Mapping[str, Setting]] = {
    "DDPMScheduler": {
        **_schedule_settings("sigmoid", "laplace"),
        **_THRESHOLDING,
        **_CLIP,
        "clip_sample": flag(True),
        "timestep_spacing": choice(*_SPACINGS),
        "variance_type": choice("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range"),
    },
    "DDIMScheduler": {
        **_schedule_settings(),
        **_THRESHOLDING,
        **_CLIP,
        "clip_sample": flag(True),
        "timestep_spacing": choice(*_SPACINGS),
        "set_alpha_to_one": flag(True),
    },
    "DPMSolverMultistepScheduler": {
        **_schedule_settings(),
        **_THRESHOLDING,
        **_SIGMAS,
        **_SOLVER,
        "timestep_spacing": choice("linspace", "leading", "trailing"),
        "use_lu_lambdas": flag(False),
        "lambda_min_clipped": lower_bound(),
        "variance_type": choice(None, "learned", "learned_range"),
        "use_flow_sigmas": choice(False, why=_NO_FLOW),
        "flow_shift": number(1.0),
        "use_dynamic_shifting": choice(False, why=_NO_FLOW),
        "time_shift_type": choice("exponential"),
    },
    "HeunDiscreteScheduler": {
        **_schedule_settings("exp", start=0.00085, end=0.012, rescale=False),
        **_SIGMAS,
        **_CLIP,
        "clip_sample": flag(False),
        "timestep_spacing": choice("linspace", "leading", "trailing"),
    },
    "EulerDiscreteScheduler": {
        **_schedule_settings(),
        **_SIGMAS,
        "interpolation_type": choice("linear", "log_linear"),
        "sigma_min": number(None, 0.0, above=True),
        "sigma_max": number(None, 0.0, above=True),
        "timestep_spacing": choice("linspace", "leading", "trailing"),
        "timestep_type": choice("discrete", "continuous"),
        "final_sigmas_type": choice("zero", "sigma_min"),
    },
    "EDMEulerScheduler": {**_EDM, "final_sigmas_type": choice("zero", "sigma_min")},
    "EDMDPMSolverMultistepScheduler": {**_EDM, **_SOLVER, **_THRESHOLDING},
}


def from_diffusers_config(config: Mapping[str, Any]) -> DiffusersScheduler:
    """(schedule, prediction, sampler) of a scheduler_config.json: sampler(schedule, steps, prediction=prediction) is its run.

    The tables follow diffusers' schedulers in every setting but for what docs/schedulers.md lists. With an EDM scheduler the
    prediction "eps" is EDM's network F and "v" the same of the other sign, and the schedule is its own training noise levels,
    which the sampler does not read.

    Args: config: the JSON's object; `_class_name` says which scheduler, and what is absent is diffusers' default.
    Raises: ValueError for a scheduler that is not known, or a setting that is not, or that a step table cannot express, naming
        the setting and its value.
    """
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in SETTINGS:
        raise ValueError(f"_class_name is {shown(name)}; schedulers that can be followed are {', '.join(SETTINGS)}")
    settings = checked(name, SETTINGS[name], config)
    prediction = PREDICTION_OF[settings["prediction_type"]]
    if name.startswith("EDM"):
        return DiffusersScheduler(_edm_schedule(name, settings), prediction, _edm_sampler(name, settings))
    trained, T = settings["trained_betas"], settings["num_train_timesteps"]
    if trained is not None and len(trained) != T:
        found = f"trained_betas {shown(trained)}, {len(trained)} numbers,"
        raise ValueError(f"{name} has {found} and num_train_timesteps {T}; there must be as many as timesteps")
    schedule = _schedule(name, settings)
    sampler = _SAMPLERS[name](name, settings)
    return DiffusersScheduler(schedule, prediction, sampler)


def to_diffusers_config(
    schedule: NoiseSchedule, prediction: Prediction, scheduler: str = "DDPMScheduler", **settings: Any
) -> dict[str, Any]:
    """A scheduler_config.json's object that makes diffusers build this schedule: `from_diffusers_config` backwards.

    By name where the schedule has one (settings of `NoiseSchedule`), else as trained_betas. diffusers' alphas_cumprod then are
    float32 products, near ours to about 1e-6; of a schedule from diffusers they are the same bits.

    Args: scheduler: a class of `SETTINGS` that is not EDM's; settings: of it, such as timestep_spacing="trailing".
    Raises: ValueError for a scheduler or setting that `from_diffusers_config` refuses, and for a schedule of zero terminal SNR
        where diffusers would divide by that zero.
    """
    known = SETTINGS.get(scheduler, {})
    if "beta_schedule" not in known:
        raise ValueError(f"scheduler is {scheduler!r}; a schedule is saved with one of {', '.join(_SAMPLERS)}")
    named = dict(schedule.settings)
    if not named or any(key not in known or known[key].problem(value) for key, value in named.items()):
        a = torch.cat([schedule.alphas_cumprod.new_ones(1), schedule.alphas_cumprod])
        if a[-1] == 0 and "use_karras_sigmas" in known:
            raise ValueError(
                f"{scheduler} cannot hold a schedule that ends in alphas_cumprod 0; use DDPMScheduler or DDIMScheduler"
            )
        named = {"trained_betas": (1 - a[1:] / a[:-1]).tolist()}
    config = {
        "_class_name": scheduler,
        "num_train_timesteps": schedule.num_timesteps,
        "prediction_type": NAME_OF[prediction],
        **named,
        **settings,
    }
    from_diffusers_config(config)
    return config


def _schedule(name: str, settings: Mapping[str, Any]) -> NoiseSchedule:
    try:
        return NoiseSchedule.from_diffusers({**settings, "_class_name": name})
    except ValueError as problem:
        # A product that does not fall, or leaves [0, 1]: one of these makes it.
        given = ("trained_betas",) if settings["trained_betas"] is not None else ("beta_schedule", "beta_start", "beta_end")
        raise ValueError(f"{name} has {', '.join(f'{key} {shown(settings[key])}' for key in given)}: {problem}") from None


def _grid(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {"spacing": settings["timestep_spacing"], "steps_offset": settings["steps_offset"]}


def _clip(settings: Mapping[str, Any]) -> float:
    return float(settings["clip_sample_range"]) if settings["clip_sample"] else math.inf


def _threshold(settings: Mapping[str, Any]) -> tuple[float, float] | None:
    return (settings["dynamic_thresholding_ratio"], settings["sample_max_value"]) if settings["thresholding"] else None


def _sigmas(name: str, settings: Mapping[str, Any]) -> SigmaSpacing:
    kinds: tuple[SigmaSpacing, ...] = ("karras", "exponential")
    asked = [kind for kind in kinds if settings[f"use_{kind}_sigmas"]]
    if len(asked) > 1:
        raise ValueError(f"{name} has use_karras_sigmas True and use_exponential_sigmas True; only one of them can be")
    if not asked and settings.get("use_lu_lambdas"):
        return "lu"
    return asked[0] if asked else "timesteps"


def _ddpm(name: str, settings: Mapping[str, Any]) -> Callable[..., StepTable]:
    bounds: dict[str, Any] = {"clip": _clip(settings), "threshold": _threshold(settings)}
    return partial(ddpm_scheduler, **_grid(settings), **bounds, variance=settings["variance_type"])


def _ddim(name: str, settings: Mapping[str, Any]) -> Callable[..., StepTable]:
    bounds: dict[str, Any] = {"clip": _clip(settings), "threshold": _threshold(settings)}
    return partial(ddim_scheduler, **_grid(settings), **bounds, ends_in_image=settings["set_alpha_to_one"])


def _dpm_solver(name: str, settings: Mapping[str, Any]) -> Callable[..., StepTable]:
    sigmas = _sigmas(name, settings)
    return partial(
        dpm_solver_scheduler,
        **_grid(settings),
        order=settings["solver_order"],
        solver=settings["solver_type"],
        stochastic=settings["algorithm_type"] == "sde-dpmsolver++",
        lower_order_final=settings["lower_order_final"],
        euler_at_final=settings["euler_at_final"],
        sigmas=sigmas,
        final=settings["final_sigmas_type"],
        lambda_min_clipped=float(settings["lambda_min_clipped"]),
        threshold=_threshold(settings),
        whole_timesteps=sigmas != "exponential" and settings["beta_schedule"] != "squaredcos_cap_v2",
    )


def _heun(name: str, settings: Mapping[str, Any]) -> Callable[..., StepTable]:
    return partial(heun_scheduler, **_grid(settings), clip=_clip(settings), sigmas=_sigmas(name, settings))


def _euler(name: str, settings: Mapping[str, Any]) -> Callable[..., StepTable]:
    return partial(
        euler_scheduler,
        **_grid(settings),
        sigmas=_sigmas(name, settings),
        sigma_min=settings["sigma_min"],
        sigma_max=settings["sigma_max"],
        final=settings["final_sigmas_type"],
        log_linear=settings["interpolation_type"] == "log_linear",
        tells_log_sigma=settings["timestep_type"] == "continuous" and settings["prediction_type"] == "v_prediction",
    )


_SAMPLERS: Mapping[str, Callable[[str, Mapping[str, Any]], Callable[..., StepTable]]] = {
    "DDPMScheduler": _ddpm,
    "DDIMScheduler": _ddim,
    "DPMSolverMultistepScheduler": _dpm_solver,
    "HeunDiscreteScheduler": _heun,
    "EulerDiscreteScheduler": _euler,
}


def _edm_schedule(name: str, settings: Mapping[str, Any]) -> NoiseSchedule:
    low, high, T, rho = (settings[key] for key in ("sigma_min", "sigma_max", "num_train_timesteps", "rho"))
    if not low < high:
        raise ValueError(f"{name} has sigma_min {shown(low)} and sigma_max {shown(high)}; the first must be the smaller")
    ramp = np.linspace(0, 1, T) if T > 1 else np.ones(1)
    low, high = np.float64(low), np.float64(high)
    with np.errstate(all="ignore"):  # of numbers that leave float64, the next line tells
        if settings["sigma_schedule"] == "karras":
            sigmas = (low ** (1 / rho) + ramp * (high ** (1 / rho) - low ** (1 / rho))) ** rho
        else:
            sigmas = low * (high / low) ** ramp
    if not np.isfinite(sigmas).all():
        found = f"sigma_max {shown(settings['sigma_max'])} and rho {shown(rho)}"
        raise ValueError(f"{name} has {found}, whose noise levels no float64 holds")
    return NoiseSchedule(1 / (1 + torch.from_numpy(sigmas / settings["sigma_data"]).square()))


def _edm_sampler(name: str, settings: Mapping[str, Any]) -> Callable[..., StepTable]:
    options: dict[str, Any] = {key: float(settings[key]) for key in ("sigma_min", "sigma_max", "sigma_data", "rho")}
    options["initial_std"] = math.hypot(options["sigma_max"], 1.0)
    shared = partial(edm, **options, spacing=settings["sigma_schedule"], ends_in_image=settings["final_sigmas_type"] == "zero")
    if name == "EDMEulerScheduler":
        return partial(shared, method="euler")
    return partial(_edm_multistep, shared, settings)


def _edm_multistep(
    sampler: Callable[..., StepTable], settings: Mapping[str, Any], schedule: NoiseSchedule, steps: int, **options: Any
) -> StepTable:
    last = settings["euler_at_final"] or settings["final_sigmas_type"] == "zero"
    table = sampler(
        schedule,
        steps,
        method="sde" if settings["algorithm_type"] == "sde-dpmsolver++" else "multistep",
        order=settings["solver_order"],
        solver=settings["solver_type"],
        first_order_last=last or (settings["lower_order_final"] and steps < FEW_STEPS),
        **options,
    )
    return bounded(table, math.inf, _threshold(settings))
