"""scheduler_config.json: what is read, what is refused and how, and what is written for diffusers to load."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastcond.config import DiffusionConfig
from fastcond.diffusion import NoiseSchedule, from_diffusers_config, to_diffusers_config
from fastcond.diffusion.beta_schedules import BETA_SCHEDULES
from fastcond.diffusion.schedulers.config import NAME_OF, SETTINGS

NAMES = list(SETTINGS)
SAVED = [name for name in NAMES if not name.startswith("EDM")]
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")


def diffusers() -> Any:
    return pytest.importorskip("diffusers")


@pytest.mark.parametrize("name", NAMES)
def test_defaults_are_those_of_diffusers(name: str) -> None:
    scheduler = getattr(diffusers(), name)()
    theirs = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    ours = {key: setting.default for key, setting in SETTINGS[name].items()}
    assert ours == theirs


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_file_is_read(name: str, tmp_path: Any) -> None:
    """With what diffusers adds to it, such as _diffusers_version."""
    getattr(diffusers(), name)().save_pretrained(tmp_path)
    read = from_diffusers_config(json.loads((tmp_path / "scheduler_config.json").read_text()))
    bare = from_diffusers_config({"_class_name": name})
    assert torch.equal(read.schedule.alphas_cumprod, bare.schedule.alphas_cumprod)
    table, expected = (one.sampler(one.schedule, 20, prediction=one.prediction) for one in (read, bare))
    assert torch.equal(table.coefficients, expected.coefficients) and torch.equal(table.timesteps, expected.timesteps)


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("T", [50, 1000])
@pytest.mark.parametrize("name", BETA_SCHEDULES)
def test_schedules_are_diffusers_to_the_bit(name: str, T: int, rescale: bool) -> None:
    of_class = "HeunDiscreteScheduler" if name == "exp" else "DDPMScheduler"
    config: dict[str, Any] = {"num_train_timesteps": T, "beta_schedule": name, "beta_start": 5e-4, "beta_end": 0.03}
    if name != "exp":
        config["rescale_betas_zero_snr"] = rescale
    theirs = getattr(diffusers(), of_class)(**config).alphas_cumprod
    ours = NoiseSchedule.from_diffusers({"_class_name": of_class, **config}).alphas_cumprod
    assert ours.dtype == torch.float64 and torch.equal(ours.float(), theirs) and torch.equal(ours, theirs.double())


def test_trained_betas_are_taken_as_they_are() -> None:
    betas = [0.001, 0.01, 0.02, 0.3]
    schedule = from_diffusers_config({"_class_name": "DDIMScheduler", "trained_betas": betas, "num_train_timesteps": 4}).schedule
    assert torch.equal(schedule.alphas_cumprod.float(), torch.cumprod(1 - torch.tensor(betas), 0))


def test_old_files_are_read() -> None:
    """google/ddpm-cifar10-32's of 2022 has entries that nobody reads today."""
    config = {"_class_name": "DDPMScheduler", "_diffusers_version": "0.1.1", "tensor_format": "pt", "timestep_values": None}
    assert from_diffusers_config({**config, "variance_type": "fixed_large", "trained_betas": None}).prediction == "eps"


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("PNDMScheduler", {}, "_class_name is 'PNDMScheduler'; schedulers that can be followed are DDPMScheduler, DDIMScheduler"),
    ("DDPMScheduler", {"set_alpha_to_one": True}, "set_alpha_to_one True, which is no setting of it; take it out"),
    ("DDPMScheduler", {"beta_schedule": "cosine"}, "beta_schedule 'cosine'; choose one of linear"),
    ("DDIMScheduler", {"beta_schedule": "sigmoid"}, "beta_schedule 'sigmoid'; choose one of linear"),
    ("DDPMScheduler", {"prediction_type": "flow"}, "prediction_type 'flow'; choose one of epsilon"),
    ("DDPMScheduler", {"clip_sample": 1}, "clip_sample 1; true or false is needed"),
    ("DDPMScheduler", {"clip_sample_range": 0}, "clip_sample_range 0; a number above 0 is needed"),
    ("DDPMScheduler", {"dynamic_thresholding_ratio": 1.5}, "dynamic_thresholding_ratio 1.5; a number above 0, at most 1"),
    ("DDPMScheduler", {"num_train_timesteps": 0}, "num_train_timesteps 0; a whole number from 1 to 1000000"),
    ("DDPMScheduler", {"trained_betas": [0.1, 2]}, r"trained_betas \[0.1, 2\]; a list of numbers in \[0, 1\] is needed"),
    ("DDPMScheduler", {"trained_betas": [0.1]}, r"trained_betas \[0.1\], 1 numbers, and num_train_timesteps 1000"),
    ("DDPMScheduler", {"beta_end": 0.0, "beta_start": 0.0}, "beta_schedule 'linear', beta_start 0.0, beta_end 0.0: .* strictly"),
    ("DPMSolverMultistepScheduler", {"solver_order": 3}, "solver_order 3; a step table keeps one earlier prediction, so 1 or 2"),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver"}, "algorithm_type 'dpmsolver'; only dpmsolver"),
    ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True}, "use_flow_sigmas True; flow matching is no diffusion"),
    ("HeunDiscreteScheduler", {"use_beta_sigmas": True}, "use_beta_sigmas True; beta sigmas are not built here"),
    (
        "EulerDiscreteScheduler",
        {"use_karras_sigmas": True, "use_exponential_sigmas": True},
        "use_karras_sigmas True and use_exponential_sigmas True; only one",
    ),
    ("EDMEulerScheduler", {"sigma_min": 90.0}, "sigma_min 90.0 and sigma_max 80.0; the first must be the smaller"),
    (
        "EDMDPMSolverMultistepScheduler",
        {"prediction_type": "sample"},
        "prediction_type 'sample'; choose one of epsilon, v_prediction",
    ),
]


@pytest.mark.parametrize(("name", "settings", "message"), REFUSED)
def test_what_cannot_be_followed_is_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_diffusers_config({"_class_name": name, **settings})


def test_zero_terminal_snr_says_nothing_about_eps() -> None:
    schedule, prediction, sampler = from_diffusers_config({"_class_name": "DDPMScheduler", "rescale_betas_zero_snr": True})
    with pytest.raises(ValueError, match="use prediction v or x_0"):
        sampler(schedule, 1000, prediction=prediction)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 2000),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.one_of(st.floats(0, 1), st.text(max_size=2)), max_size=4),
    st.sampled_from(
        ["linear", "epsilon", "sample", "trailing", "leading", "zero", "heun", "learned", "karras", "exp", "log_linear"]
    ),
)


@given(data=st.data(), name=st.sampled_from(NAMES))
def test_any_entry_is_followed_or_named(data: st.DataObject, name: str) -> None:
    """One entry of any value, known or not: a sampler that makes tables of numbers, or one line with the entry and its value."""
    known = sorted(SETTINGS[name])
    key = data.draw(st.one_of(st.sampled_from(known), st.text(min_size=1, max_size=12).filter(lambda word: word[0] != "_")))
    value = data.draw(VALUES)
    base = {"_class_name": name, "num_train_timesteps": 60}
    try:
        schedule, prediction, sampler = from_diffusers_config({**base, key: value})
    except ValueError as refusal:
        text = repr(value)
        assert key in str(refusal) and (text if len(text) <= 60 else text[:57]) in str(refusal)
        assert "\n" not in str(refusal) or "\n" in key
        return
    assert key in known or (key, value) in {("tensor_format", "pt"), ("timestep_values", None)}
    try:
        table = sampler(schedule, 4, prediction=prediction)
    except ValueError as refusal:
        # What only the number of steps shows: an offset past the end, a schedule that is all signal, pure noise and eps.
        assert key in (
            "steps_offset",
            "lambda_min_clipped",
            "num_train_timesteps",
            "beta_start",
            "beta_end",
            "trained_betas",
        ) or (key == "rescale_betas_zero_snr"), refusal
        return
    finite = table.coefficients.clone()
    finite[:, 2] = 1.0
    assert bool(finite.isfinite().all()) and math.isfinite(table.initial_scale)


@pytest.mark.parametrize("scheduler", SAVED)
@pytest.mark.parametrize(
    "config",
    [
        DiffusionConfig(),
        DiffusionConfig(num_timesteps=200, prediction="v"),
        DiffusionConfig(num_timesteps=10),
        DiffusionConfig(schedule="cosine", prediction="x_0"),
        DiffusionConfig(zero_terminal_snr=True, prediction="v"),
    ],
)
def test_what_is_saved_diffusers_loads(config: DiffusionConfig, scheduler: str) -> None:
    """Our schedule, within what float32 makes of it, and the same samplers when it is read again."""
    schedule = NoiseSchedule.from_config(config)
    if config.zero_terminal_snr and scheduler == "HeunDiscreteScheduler":
        with pytest.raises(ValueError, match="HeunDiscreteScheduler cannot hold a schedule that ends in alphas_cumprod 0"):
            to_diffusers_config(schedule, config.prediction, scheduler)
        return
    saved = json.loads(json.dumps(to_diffusers_config(schedule, config.prediction, scheduler, timestep_spacing="trailing")))
    theirs = getattr(diffusers(), scheduler).from_config(saved)
    a = theirs.alphas_cumprod.double()
    if config.zero_terminal_snr and a[-1] != 0:
        a[-1] = 0  # 2^-24 there
    torch.testing.assert_close(schedule.alphas_cumprod, a, atol=2e-6, rtol=2e-3)
    assert theirs.config.prediction_type == NAME_OF[config.prediction] and theirs.config.timestep_spacing == "trailing"
    read = from_diffusers_config(saved)
    assert read.prediction == config.prediction
    assert read.sampler(read.schedule, 5, prediction=read.prediction).num_rows in (5, 9)


def test_a_schedule_of_diffusers_is_saved_as_it_was() -> None:
    config = {"_class_name": "DDPMScheduler", "beta_schedule": "sigmoid", "beta_end": 0.03, "num_train_timesteps": 300}
    schedule = from_diffusers_config(config).schedule
    saved = to_diffusers_config(schedule, "eps")
    assert saved["beta_schedule"] == "sigmoid" and saved["beta_end"] == 0.03
    assert torch.equal(from_diffusers_config(saved).schedule.alphas_cumprod, schedule.alphas_cumprod)
    # A scheduler that does not know sigmoid betas gets them one by one.
    by_number = to_diffusers_config(schedule, "eps", "DDIMScheduler")
    assert len(by_number["trained_betas"]) == 300 and "beta_schedule" not in by_number
    with pytest.raises(ValueError, match="scheduler is 'EDMEulerScheduler'; a schedule is saved with one of DDPMScheduler"):
        to_diffusers_config(schedule, "eps", "EDMEulerScheduler")
    with pytest.raises(ValueError, match=r"eta 0\.5, which is no setting"):
        to_diffusers_config(schedule, "eps", "DDIMScheduler", eta=0.5)
