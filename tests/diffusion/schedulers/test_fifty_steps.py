"""Some 450 settings of diffusers' schedulers, 50 steps each, both sides as they run: every x within 1e-4, absolutely.

But for those runs that grow so large that float32 has no 1e-4 to give after 50 steps, which are within what it loses.
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
import torch

from tests.diffusion.schedulers.test_follow_diffusers import (
    BOUNDS,
    PREDICTIONS,
    SCHEDULES,
    SIGMAS,
    SOLVERS,
    SPACINGS,
    VARIANCES,
    combinations,
    with_variance,
)
from tests.support.samplers import wavy_network
from tests.support.schedulers import made, run_config, run_diffusers, table_of
from tests.tolerances import SCHEDULER, floor, largest_error

pytest.importorskip("diffusers")
# numpy's, of diffusers' np.array(tensor)
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")

STEPS = 50
# Solvers in sigma keep y = x/alpha in float32, which with cosine betas is 20,000 at the start and good for 3 digits:
# test_known_differences has that. 157 of linear betas is good for 1e-4.
NOT_COSINE = [schedule for schedule in SCHEDULES if "squaredcos_cap_v2" not in schedule.values()]


def cases(name: str, *axes: Any, every: int = 1) -> list[Any]:
    """Settings of one scheduler: each `every`th of spacing, prediction and the axes' product."""
    found = []
    for spacing, prediction, *parts in combinations(SPACINGS, PREDICTIONS, *axes, every=every):
        config: dict[str, Any] = {"_class_name": name, "timestep_spacing": spacing, "prediction_type": prediction}
        for part in parts:
            config |= part
        found.append(_param(config))
    return found


def _param(config: dict[str, Any]) -> Any:
    words = [f"{value:g}" if isinstance(value, float) else str(value) for value in config.values() if not isinstance(value, list)]
    return pytest.param(config, id="-".join(words))


# A scheduler as it comes: nothing but its name in its file.
DEFAULTS = [
    {"_class_name": name}
    for name in (
        "DDPMScheduler",
        "DDIMScheduler",
        "DPMSolverMultistepScheduler",
        "HeunDiscreteScheduler",
        "EulerDiscreteScheduler",
        "EDMEulerScheduler",
        "EDMDPMSolverMultistepScheduler",
    )
]
EDM = [
    {"_class_name": name, "sigma_schedule": schedule, "prediction_type": prediction, **part}
    for schedule, prediction in itertools.product(["karras", "exponential"], ["epsilon", "v_prediction"])
    for name, parts in (
        ("EDMEulerScheduler", [{}, {"final_sigmas_type": "sigma_min"}]),
        ("EDMDPMSolverMultistepScheduler", SOLVERS[:6]),
    )
    for part in parts
]


def _within_1e_4(config: dict[str, Any]) -> bool:
    """Whether nothing but 1e-4 will do. From eps, x0 is up to 1/sqrt(a) times what the network says (15, 157 or 20,000 at the
    start of scaled_linear, linear or cosine betas), and where nothing bounds it, so is x of a made-up network: one rounding of
    20,000 is 1e-3. A scheduler as it comes, EDM and Euler (which reaches 121) keep 1e-4 all the same."""
    bounded = config.get("clip_sample", False) or config.get("thresholding", False)
    small = config.get("prediction_type", "epsilon") != "epsilon" or bounded
    return small or config in DEFAULTS or config["_class_name"].startswith(("Euler", "EDM"))


RUNS = [
    *map(_param, DEFAULTS),
    *map(_param, EDM),
    _param({"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True}),
    *cases("DDPMScheduler", [{"variance_type": variance} for variance in VARIANCES], BOUNDS, SCHEDULES, every=9),
    *cases(
        "DDIMScheduler",
        BOUNDS,
        SCHEDULES,
        [{"eta": eta, "use_clipped_model_output": rederived} for eta in (0.0, 0.5, 1.0) for rederived in (False, True)],
        every=11,
    ),
    *cases("DPMSolverMultistepScheduler", SOLVERS, SIGMAS, [{}, *BOUNDS[3:]], NOT_COSINE, every=17),
    *cases("HeunDiscreteScheduler", [{}, *BOUNDS[:3]], NOT_COSINE, SIGMAS, every=5),
    *cases("EulerDiscreteScheduler", NOT_COSINE, [*SIGMAS, {"final_sigmas_type": "sigma_min"}], every=3),
]


@pytest.mark.parametrize("config", RUNS)
def test_fifty_steps(config: dict[str, Any]) -> None:
    at_a_call = {key: config[key] for key in ("eta", "use_clipped_model_output") if key in config}
    settings = {key: value for key, value in config.items() if key not in at_a_call}
    variance = config.get("variance_type", "")
    network = with_variance(variance) if variance.startswith("learned") else wavy_network
    theirs = run_diffusers(made(settings, STEPS), network, **at_a_call)
    options = {"eta": at_a_call["eta"], "rederive_eps": at_a_call["use_clipped_model_output"]} if at_a_call else {}
    ours = run_config(table_of(settings, STEPS, **options), network)
    assert len(ours) > STEPS and all(bool(x.isfinite().all()) for x in theirs)
    error = max(largest_error(x, expected) for x, expected in zip(ours, theirs, strict=True))
    largest = max(float(x.abs().max()) for x in theirs)
    lost = floor(torch.float32, torch.zeros(1), largest, STEPS)
    assert error <= (SCHEDULER if _within_1e_4(config) else max(SCHEDULER, lost)), f"{error:.3g} of an x of {largest:.4g}"


def test_there_are_at_least_300() -> None:
    """Of those that have to be within 1e-4; and all that is followed is among them."""
    configs = [param.values[0] for param in RUNS]
    assert len(configs) == len({str(config) for config in configs})
    assert all(config in configs for config in DEFAULTS)
    strict = [config for config in configs if _within_1e_4(config)]
    schedulers = Counter(config["_class_name"] for config in strict)
    assert len(strict) >= 300 and len(schedulers) == 7 and min(schedulers.values()) >= 9, schedulers
    for name in schedulers:
        own = [config for config in configs if config["_class_name"] == name]
        if name.startswith("EDM"):
            assert {config.get("sigma_schedule", "karras") for config in own} == {"karras", "exponential"}
            continue
        assert schedulers[name] >= 20
        assert {config["timestep_spacing"] for config in own if "timestep_spacing" in config} == set(SPACINGS)
        assert {config["prediction_type"] for config in own if "prediction_type" in config} == set(PREDICTIONS)
    assert {config.get("variance_type") for config in strict} >= set(VARIANCES)
