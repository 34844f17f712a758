"""At least 300 settings of diffusers' schedulers, 50 steps each, both sides as they run: every x within 1e-4, absolutely."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

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
from tests.tolerances import SCHEDULER, largest_error

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
        if not _keeps_size(config):
            continue
        words = [
            f"{value:g}" if isinstance(value, float) else str(value) for value in config.values() if not isinstance(value, list)
        ]
        found.append(pytest.param(config, id="-".join(words)))
    return found


def _keeps_size(config: dict[str, Any]) -> bool:
    """1e-4 is of x as large as images and noise. From eps, x0 is up to 20,000 times what the made-up network says, and where
    nothing bounds it x grows to thousands; test_follow_diffusers has such runs, relative to their size."""
    bounded = config.get("clip_sample", False) or config.get("thresholding", False)
    return config["prediction_type"] != "epsilon" or bounded or config["_class_name"] == "EulerDiscreteScheduler"


RUNS = [
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
    assert len(ours) > STEPS
    error = max(largest_error(x, expected) for x, expected in zip(ours, theirs, strict=True))
    assert error <= SCHEDULER


def test_there_are_at_least_300() -> None:
    configs = [param.values[0] for param in RUNS]
    assert len(configs) == len({str(config) for config in configs}) >= 300
    schedulers = Counter(config["_class_name"] for config in configs)
    assert len(schedulers) == 5 and min(schedulers.values()) >= 20, schedulers
    for name in schedulers:
        own = [config for config in configs if config["_class_name"] == name]
        assert {config["timestep_spacing"] for config in own} == set(SPACINGS)
        assert {config["prediction_type"] for config in own} == set(PREDICTIONS)
    assert {config.get("variance_type") for config in configs} >= set(VARIANCES)
