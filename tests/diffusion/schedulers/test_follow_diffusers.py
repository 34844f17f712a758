"""Whole runs of a scheduler_config.json's step table against the installed diffusers, on the same outputs and noise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.samplers import wavy_network
from tests.support.schedulers import assert_follows, made, run_diffusers, run_diffusers_in_double, table_of

diffusers = pytest.importorskip("diffusers")
# numpy's, of diffusers' np.array(tensor)
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")

STEPS = [1, 2, 10, 13, 50, 199]
SPACINGS = ["leading", "trailing", "linspace"]
PREDICTIONS = ["epsilon", "v_prediction", "sample"]
CLIPPED: dict[str, Any] = {"clip_sample": True}
BOUNDS: list[dict[str, Any]] = [
    CLIPPED,
    {"clip_sample": False},
    {"clip_sample": True, "clip_sample_range": 2.0},
    {"thresholding": True},
    {"thresholding": True, "sample_max_value": 3.0, "dynamic_thresholding_ratio": 0.8},
]
SCHEDULES: list[dict[str, Any]] = [
    {},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"trained_betas": [1e-3 * (1 + i / 20) for i in range(300)], "num_train_timesteps": 300},
]
ZERO_SNR = {"rescale_betas_zero_snr": True}


def combinations(*axes: Sequence[Any], every: int = 1) -> Iterator[tuple[Any, ...]]:
    """Each `every`th of the axes' product, of which an odd stride visits every value of every axis and most pairs."""
    return itertools.islice(itertools.product(*axes), 0, None, every)


def case(name: str, steps: int, *settings: dict[str, Any], **named: Any) -> Any:
    config: dict[str, Any] = {"_class_name": name, **named}
    for part in settings:
        config |= part
    words = [f"{value:g}" if isinstance(value, float) else str(value) for value in config.values() if not isinstance(value, list)]
    return pytest.param(config, steps, id="-".join([*words, str(steps)]))


def grid(*extra: Any, every: int) -> Iterator[tuple[dict[str, Any], int, tuple[Any, ...]]]:
    """(spacing and prediction, steps, one of each extra axis)."""
    for spacing, prediction, steps, *rest in combinations(SPACINGS, PREDICTIONS, STEPS, *extra, every=every):
        yield {"timestep_spacing": spacing, "prediction_type": prediction}, steps, tuple(rest)


def with_variance(variance: str) -> Any:
    """A network of 2C channels, the second C in [-1, 1], or, for "learned", positive."""

    def network(x: Tensor, timestep: Tensor) -> Tensor:
        v = 0.9 * torch.sin(3 * x - timestep.float() / 50)
        return torch.cat([wavy_network(x, timestep), 0.01 * (1.1 + v) if variance == "learned" else v], dim=1)

    return network


VARIANCES = ["fixed_small", "fixed_small_log", "fixed_large", "learned", "learned_range"]
DDPM = [
    *(
        case("DDPMScheduler", steps, of, bounds, schedule, variance_type=variance)
        for of, steps, (variance, bounds, schedule) in grid(VARIANCES, BOUNDS, SCHEDULES, every=47)
    ),
    *(
        case("DDPMScheduler", steps, ZERO_SNR, bounds, prediction_type=prediction, timestep_spacing="trailing")
        for prediction, steps, bounds in itertools.product(["v_prediction", "sample"], [1, 13, 50], BOUNDS[:2])
    ),
    *(case("DDPMScheduler", steps, CLIPPED, beta_schedule=name) for name in ("sigmoid", "laplace") for steps in (10, 200)),
    # x0 is divided by 0.5 then, so long runs of the made-up network amplify what float32 loses.
    *(
        case("DDPMScheduler", steps, prediction_type=prediction, thresholding=True, sample_max_value=0.5)
        for prediction, steps in itertools.product(PREDICTIONS, [1, 2, 10])
    ),
    *(case("DDPMScheduler", 1000, CLIPPED, prediction_type=prediction) for prediction in PREDICTIONS),
    *(
        case("DDPMScheduler", steps, CLIPPED, steps_offset=1, variance_type=variance)
        for steps in (13, 50)
        for variance in ("fixed_small", "fixed_large")
    ),
]


@pytest.mark.parametrize(("config", "steps"), DDPM)
def test_ddpm(config: dict[str, Any], steps: int) -> None:
    variance = config.get("variance_type", "fixed_small")
    network = with_variance(variance) if variance.startswith("learned") else wavy_network
    scheduler = made(config, steps)
    table = table_of(config, steps)
    assert torch.equal(table.timesteps, scheduler.timesteps)
    assert_follows(table, network, run_diffusers(scheduler, network))


DDIM = [
    case("DDIMScheduler", steps, of, bounds, schedule, set_alpha_to_one=one, eta=eta, rederive=rederive)
    for of, steps, (bounds, schedule, one, eta, rederive) in grid(
        BOUNDS, SCHEDULES, [True, False], [0.0, 0.5, 1.0], [False, True], every=133
    )
]
DDIM += [
    case("DDIMScheduler", steps, CLIPPED, steps_offset=offset, set_alpha_to_one=one, eta=eta, rederive=False)
    for steps, offset, one, eta in itertools.product([13, 50], [1, 3], [True, False], [0.0, 1.0])
]


@pytest.mark.parametrize(("config", "steps"), DDIM)
def test_ddim(config: dict[str, Any], steps: int) -> None:
    """eta and use_clipped_model_output are arguments of step() there."""
    settings = {key: value for key, value in config.items() if key not in ("eta", "rederive")}
    theirs = run_diffusers(made(settings, steps), wavy_network, eta=config["eta"], use_clipped_model_output=config["rederive"])
    table = table_of(settings, steps, eta=config["eta"], rederive_eps=config["rederive"])
    assert_follows(table, wavy_network, theirs)


OFFSETS = [(13, 1), (50, 1), (50, 3)]  # steps, and steps_offset, of leading spacing
SIGMAS: list[dict[str, Any]] = [{}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}]
SOLVERS: list[dict[str, Any]] = [
    {},
    {"solver_type": "heun"},
    {"algorithm_type": "sde-dpmsolver++"},
    {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"},
    {"solver_order": 1},
    {"final_sigmas_type": "sigma_min"},
    {"final_sigmas_type": "sigma_min", "lower_order_final": False},
    {"final_sigmas_type": "sigma_min", "euler_at_final": True},
]
DPM_SOLVER = [
    *(
        case("DPMSolverMultistepScheduler", steps, of, bounds, schedule, sigmas, solver)
        for of, steps, (solver, sigmas, bounds, schedule) in grid(
            SOLVERS, [*SIGMAS, {"use_lu_lambdas": True}], [{}, *BOUNDS[3:]], [*SCHEDULES, ZERO_SNR], every=219
        )
    ),
    *(
        case(
            "DPMSolverMultistepScheduler",
            steps,
            timestep_spacing=spacing,
            lambda_min_clipped=-3.0,
            prediction_type="v_prediction",
        )
        for spacing in SPACINGS
        for steps in (2, 13, 50)
    ),
    *(
        case(
            "DPMSolverMultistepScheduler", steps, {"thresholding": True}, timestep_spacing="leading", steps_offset=offset, **more
        )
        for steps, offset in OFFSETS
        for more in ({}, {"final_sigmas_type": "sigma_min"}, {"use_karras_sigmas": True})
    ),
]
HEUN = [
    case("HeunDiscreteScheduler", steps, of, bounds, schedule, sigmas)
    for of, steps, (bounds, schedule, sigmas) in grid([{}, *BOUNDS[:3]], [*SCHEDULES, {"beta_schedule": "exp"}], SIGMAS, every=43)
    # Its one correction is over a fall of sigma from 403 to 0.11, and multiplies what float32 has lost by 1800.
    if not (steps == 2 and schedule.get("beta_schedule") == "exp")
]
HEUN += [
    case("HeunDiscreteScheduler", steps, CLIPPED, timestep_spacing="leading", steps_offset=offset, prediction_type=prediction)
    for steps, offset in OFFSETS
    for prediction in PREDICTIONS
]
EULER = [
    case("EulerDiscreteScheduler", steps, of, schedule, sigmas)
    for of, steps, (schedule, sigmas) in grid(
        [*SCHEDULES, ZERO_SNR],
        [
            *SIGMAS,
            {"use_karras_sigmas": True, "sigma_min": 0.05, "sigma_max": 50.0},
            {"final_sigmas_type": "sigma_min"},
            {"interpolation_type": "log_linear"},
            {"timestep_type": "continuous"},
            {"timestep_type": "continuous", "interpolation_type": "log_linear"},
        ],
        every=31,
    )
]
EULER += [
    case("EulerDiscreteScheduler", steps, timestep_spacing="leading", steps_offset=offset, prediction_type=prediction)
    for steps, offset in OFFSETS
    for prediction in PREDICTIONS
]
EDM_LEVELS: list[dict[str, Any]] = [
    {},
    {"sigma_schedule": "exponential"},
    {"final_sigmas_type": "sigma_min"},
    {"sigma_min": 0.01, "sigma_max": 20.0, "sigma_data": 1.0, "rho": 5.0},
]
EDM = [
    case(name, steps, levels, solver, prediction_type=prediction)
    for prediction, steps, levels, (name, solver) in combinations(
        PREDICTIONS[:2],
        STEPS[1:],
        EDM_LEVELS,
        [
            ("EDMEulerScheduler", {}),
            *(("EDMDPMSolverMultistepScheduler", {**s, **b}) for s, b in zip(SOLVERS, [{}, *BOUNDS[3:]] * 3, strict=False)),
        ],
        every=5,
    )
    # A last step from sigma_min to sigma_min is not a number in diffusers, with heun, or where float64 sees it to be a step back.
    if not ((solver.get("solver_type") or solver.get("algorithm_type")) and "final_sigmas_type" in levels and steps >= 15)
]


@pytest.mark.parametrize(("config", "steps"), [*DPM_SOLVER, *HEUN, *EULER, *EDM])
def test_solvers_in_sigma(config: dict[str, Any], steps: int) -> None:
    """diffusers' formulas; its float32 loses what `run_diffusers_in_double` says."""
    table = table_of(config, steps)
    scheduler = made(config, steps)
    torch.testing.assert_close(table.timesteps.double(), scheduler.timesteps.double(), atol=1e-6, rtol=2e-6)
    assert_follows(table, wavy_network, run_diffusers_in_double(config, steps, wavy_network))


IN_FLOAT32 = [
    case(name, steps, settings, prediction_type=prediction, beta_start=1e-4, beta_end=0.02)
    for name, settings in [
        ("DPMSolverMultistepScheduler", {"thresholding": True}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "thresholding": True, "use_karras_sigmas": True}),
        ("HeunDiscreteScheduler", CLIPPED),
        ("HeunDiscreteScheduler", {**CLIPPED, "timestep_spacing": "trailing", "use_karras_sigmas": True}),
        ("EulerDiscreteScheduler", {}),
    ]
    for steps in (10, 50)
    for prediction in PREDICTIONS
]


@pytest.mark.parametrize(("config", "steps"), IN_FLOAT32)
def test_solvers_in_sigma_as_they_run(config: dict[str, Any], steps: int) -> None:
    """Linear betas, where float32 loses nothing that matters."""
    assert_follows(table_of(config, steps), wavy_network, run_diffusers(made(config, steps), wavy_network))


@cache
def number_of_runs() -> int:
    return len(DDPM) + len(DDIM) + len(DPM_SOLVER) + len(HEUN) + len(EULER) + len(EDM) + len(IN_FLOAT32)


def test_enough_runs_are_compared() -> None:
    assert number_of_runs() >= 300
    every = [param.values[0] for param in (*DDPM, *DDIM, *DPM_SOLVER, *HEUN, *EULER)]
    for key, values in {"timestep_spacing": SPACINGS, "prediction_type": PREDICTIONS, "variance_type": VARIANCES}.items():
        assert {config.get(key) for config in every} >= set(values)
    assert math.isclose(max(param.values[1] for param in DDPM), 1000)
