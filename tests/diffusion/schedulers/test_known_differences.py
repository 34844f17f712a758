"""Where diffusers and fastcond differ on purpose, each with what diffusers does; docs/schedulers.md has the list."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from fastcond.diffusion import ddim, ddpm, from_diffusers_config
from tests.support.samplers import wavy_network
from tests.support.schedulers import (
    assert_follows,
    made,
    run_config,
    run_diffusers,
    run_diffusers_in_double,
    run_in_double,
    table_of,
)
from tests.tolerances import SCHEDULER, largest_error

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")


def test_fixed_large_log_is_not_a_number_in_diffusers() -> None:
    """huggingface/diffusers#14569: the square root of a logarithm. Ours is what was meant, fixed_large."""
    config = {"_class_name": "DDPMScheduler", "variance_type": "fixed_large_log"}
    assert run_diffusers(made(config, 10), wavy_network)[1].isnan().any()
    meant = run_diffusers(made({**config, "variance_type": "fixed_large"}, 10), wavy_network)
    assert_follows(table_of(config, 10), wavy_network, meant)


@pytest.mark.parametrize(
    ("spacing", "steps", "differs"), [("linspace", 10, True), ("trailing", 13, True), ("trailing", 10, False)]
)
def test_ddim_goes_to_a_timestep_that_is_not_next(spacing: Any, steps: int, differs: bool) -> None:
    """huggingface/diffusers#11347, #12633, open #14357: t - T//N in any spacing, as DDPM's was until #9384 (#9261). Ours follows,
    unless previous="schedule"."""
    config = {"_class_name": "DDIMScheduler", "timestep_spacing": spacing, "beta_start": 1e-4, "beta_end": 0.02}
    scheduler = made(config, steps)
    t = scheduler.timesteps
    assert bool((t[:-1] - 1000 // steps != t[1:]).any()) == differs
    theirs = run_diffusers(scheduler, wavy_network)
    assert_follows(table_of(config, steps), wavy_network, theirs)
    right = run_config(table_of(config, steps, previous="schedule"), wavy_network)
    schedule, _, _ = from_diffusers_config(config)
    for ours, own in zip(right, run_config(ddim(schedule, steps, spacing=spacing), wavy_network), strict=True):
        assert largest_error(ours, own) <= SCHEDULER
    assert (largest_error(right[-1], theirs[-1]) > 10 * SCHEDULER) == differs


def test_ddim_with_eta_1_and_zero_terminal_snr_is_not_a_number_in_diffusers() -> None:
    """huggingface/diffusers#5969: 1 - a' - sigma^2 is 0, and in float32 less. Ours clamps it."""
    config = {
        "_class_name": "DDIMScheduler",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "prediction_type": "v_prediction",
    }
    assert run_diffusers(made(config, 10), wavy_network, eta=1.0)[1].isnan().any()
    ours = run_config(table_of(config, 10, eta=1.0), wavy_network)
    assert all(bool(x.isfinite().all()) for x in ours)


def test_trailing_spacing_has_a_step_too_many_in_diffusers() -> None:
    """np.arange(T, 0, -T/N) has N + 1 entries for 62 of 1000 N; the network is told timestep -1. Ours leaves that one out."""
    affected = [N for N in range(1, 1001) if len(np.arange(1000, 0, -1000 / N)) != N]
    assert len(affected) == 62 and affected[0] == 61
    for name in (
        "DDPMScheduler",
        "DDIMScheduler",
        "DPMSolverMultistepScheduler",
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
    ):
        config = {"_class_name": name, "timestep_spacing": "trailing", "beta_start": 1e-4, "beta_end": 0.02}
        theirs, ours = made(config, 61).timesteps, table_of(config, 61).timesteps
        assert float(theirs[-1]) == -1 and float(ours[-1]) >= 0
        assert torch.equal(theirs[: len(ours)].double(), ours.double())


def test_ddim_keeps_the_network_s_eps_where_x_0_is_clamped() -> None:
    """huggingface/diffusers#553 (#1069): raw eps by default, guided-diffusion's, derived anew from the clamped x_0, with
    use_clipped_model_output; only the latter is DDPM at eta 1. Ours follows both: rederive_eps."""
    config = {"_class_name": "DDIMScheduler", "timestep_spacing": "leading"}
    raw, derived = (run_diffusers(made(config, 10), wavy_network, use_clipped_model_output=flag) for flag in (False, True))
    assert largest_error(raw[-1], derived[-1]) > 10 * SCHEDULER
    assert_follows(table_of(config, 10), wavy_network, raw)
    assert_follows(table_of(config, 10, rederive_eps=True), wavy_network, derived)
    # The first step by guided-diffusion's formulas (gaussian_diffusion.py, ddim_sample).
    a = made(config, 10).alphas_cumprod.double()
    x = raw[0].double()
    x_0 = ((x - (1 - a[900]).sqrt() * wavy_network(x, torch.tensor(900))) / a[900].sqrt()).clamp(-1, 1)
    eps = (x / a[900].sqrt() - x_0) / (1 / a[900] - 1).sqrt()
    assert largest_error(derived[1].double(), a[800].sqrt() * x_0 + (1 - a[800]).sqrt() * eps) <= SCHEDULER
    ancestral = run_config(table_of({**config, "_class_name": "DDPMScheduler"}, 10), wavy_network)
    for rederived, equal in ((True, True), (False, False)):
        visited = run_config(table_of(config, 10, eta=1.0, rederive_eps=rederived), wavy_network)
        assert (largest_error(visited[-1], ancestral[-1]) <= SCHEDULER) == equal


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler", "HeunDiscreteScheduler", "EulerDiscreteScheduler"])
def test_one_linspace_step_is_timestep_0(name: str) -> None:
    """np.linspace(0, T - 1, 1) is its first end, the image's. Followed; our own samplers begin where noise is."""
    config = {"_class_name": name, "timestep_spacing": "linspace", "beta_start": 1e-4, "beta_end": 0.02}
    table = table_of(config, 1)
    assert made(config, 1).timesteps.tolist() == table.timesteps.tolist() == [0]
    assert_follows(table, wavy_network, run_diffusers(made(config, 1), wavy_network))
    schedule, _, _ = from_diffusers_config(config)
    for sampler in (ddpm, ddim):
        assert sampler(schedule, 1, spacing="linspace").timesteps.tolist() == [999]


def test_dpm_solver_has_a_point_more_and_so_begins_in_noise() -> None:
    config = {"_class_name": "DPMSolverMultistepScheduler", "timestep_spacing": "linspace"}
    assert made(config, 1).timesteps.tolist() == table_of(config, 1).timesteps.tolist() == [999]


def test_trailing_steps_of_a_clipped_lambda_end_in_timestep_minus_1() -> None:
    """As trailing spacing does for some N: from 967 in steps of 1000/31 the last is -1, of the image's own noise level. Ours
    leaves it out, and is the same before."""
    config = {
        "_class_name": "DPMSolverMultistepScheduler",
        "timestep_spacing": "trailing",
        "beta_schedule": "squaredcos_cap_v2",
        "lambda_min_clipped": -3.0,
        "prediction_type": "v_prediction",
    }
    theirs, ours = made(config, 31).timesteps.tolist(), table_of(config, 31).timesteps.tolist()
    assert theirs == [*ours, -1] and ours[0] == 967
    exact, visited = run_diffusers_in_double(config, 31, wavy_network), run_config(table_of(config, 31), wavy_network)
    for x, expected in zip(visited[:-1], exact, strict=False):
        assert largest_error(x, expected) <= SCHEDULER
    for steps in range(1, 200):
        own = [t for t in made(config, steps).timesteps.tolist() if t >= 0]
        assert table_of(config, steps).timesteps.tolist() == own


def test_log_linear_sigmas_with_continuous_timesteps_have_a_step_more() -> None:
    """One sigma more than steps, and a timestep for each where the network is told log(sigma)/4. Followed, row by row."""
    config = {"_class_name": "EulerDiscreteScheduler", "interpolation_type": "log_linear", "prediction_type": "v_prediction"}
    for kind, rows in (("discrete", 10), ("continuous", 11)):
        scheduler, table = made({**config, "timestep_type": kind}, 10), table_of({**config, "timestep_type": kind}, 10)
        assert len(scheduler.timesteps) == table.num_rows == rows
        torch.testing.assert_close(table.timesteps.double(), scheduler.timesteps.double(), atol=1e-6, rtol=2e-6)
        assert_follows(table, wavy_network, run_diffusers(scheduler, wavy_network))


def test_exponential_heun_steps_of_a_cosine_schedule_lose_float32_s_digits() -> None:
    """Sigma falls from 20,291 in factors of 12, and every corrector multiplies by that what was lost before. Neither side's
    formulas: in float64 they are the same, and a float32 rounding of the first x alone moves the images by more than 1e-4."""
    config = {
        "_class_name": "HeunDiscreteScheduler",
        "use_exponential_sigmas": True,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "epsilon",
    }
    theirs, ours = run_diffusers_in_double(config, 7, wavy_network), run_in_double(config, 7, wavy_network)
    assert max(largest_error(x, expected) for x, expected in zip(ours, theirs, strict=True)) <= SCHEDULER / 1000
    moved = run_in_double(config, 7, wavy_network, scale=1 + torch.finfo(torch.float32).eps / 2)
    assert largest_error(moved[-1], ours[-1]) > 10 * SCHEDULER
    in_float32 = run_diffusers(made(config, 7), wavy_network)
    assert largest_error(in_float32[-1], theirs[-1]) > 10 * SCHEDULER


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
def test_leading_spacing_with_an_offset_can_leave_the_schedule(name: str) -> None:
    """huggingface/diffusers#10003: 1000 steps and steps_offset 1 are an IndexError in the run; here a refusal before it."""
    config = {"_class_name": name, "steps_offset": 1}
    with pytest.raises(IndexError):
        run_diffusers(made(config, 1000), wavy_network)
    with pytest.raises(ValueError, match=r"1000 steps of spacing leading visit timestep 1000 .* lower steps_offset"):
        table_of(config, 1000)


def test_a_timestep_visited_twice_is_not_a_number_in_diffusers() -> None:
    """DPM-Solver++ of as many linspace steps as timesteps: 0/0 in its second order. Here a refusal."""
    config = {"_class_name": "DPMSolverMultistepScheduler", "num_train_timesteps": 50}
    assert run_diffusers(made(config, 50), wavy_network)[-1].isnan().any()
    with pytest.raises(ValueError, match="50 steps of spacing linspace visit a timestep twice; give fewer steps"):
        table_of(config, 50)


@pytest.mark.parametrize("trailing", [True, False])
def test_ancestral_noise_on_the_image(trailing: bool) -> None:
    """DDPMScheduler's condition is t > 0, not "the last row": fixed_large of trailing steps ends in noise. Our own ddpm's not."""
    config = {
        "_class_name": "DDPMScheduler",
        "variance_type": "fixed_large",
        "timestep_spacing": "trailing" if trailing else "leading",
    }
    table = table_of(config, 10)
    schedule, _, _ = from_diffusers_config(config)
    left = math.sqrt(1 - float(schedule.alphas_cumprod[table.timesteps[-1]]))
    assert float(table.column("k_n")[-1]) == pytest.approx(left if trailing else 0.0, rel=1e-5)
    assert left > (0.3 if trailing else 0.0)
    assert float(ddpm(schedule, 10, variance="fixed_large", spacing="trailing").column("k_n")[-1]) == 0
    assert_follows(table, wavy_network, run_diffusers(made(config, 10), wavy_network))


def test_float32_betas_of_a_thousand_steps() -> None:
    """1 - a/a' in float32 is 3e-8 off at betas of 1e-4. Followed, since 1000 steps show it; our own ddpm has float64's."""
    config = {"_class_name": "DDPMScheduler"}
    schedule, _, _ = from_diffusers_config(config)
    theirs = made(config, 1000)
    ours, own = table_of(config, 1000), ddpm(schedule, 1000, spacing="leading")
    a, before = theirs.alphas_cumprod[1], theirs.alphas_cumprod[0]
    expected = float(before**0.5 * (1 - a / before) / (1 - a))
    assert float(ours.column("k_0")[-2]) == pytest.approx(expected, rel=3e-7)
    assert float(own.column("k_0")[-2]) != pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "HeunDiscreteScheduler"])
def test_a_cosine_schedule_in_sigma_loses_digits_in_diffusers(name: str) -> None:
    """y is 20,000 times the noise, and a step is a difference of such: float32 keeps 3 digits of the image. A table keeps x."""
    config = {
        "_class_name": name,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "sample",
        "timestep_spacing": "trailing",
    }
    exact = run_diffusers_in_double(config, 10, wavy_network)
    as_run = run_diffusers(made(config, 10), wavy_network)
    table = table_of(config, 10)
    assert_follows(table, wavy_network, exact)
    lost = max(largest_error(theirs, right) for theirs, right in zip(as_run, exact, strict=True))
    kept = max(largest_error(ours, right) for ours, right in zip(run_config(table, wavy_network), exact, strict=True))
    assert lost > 5 * SCHEDULER and kept < lost / 5


def test_the_last_but_one_timestep_of_zero_terminal_snr_has_less_signal_than_the_last() -> None:
    """Solvers in sigma put 2^-24 for 0, which with linear betas is more than the timestep before. Followed."""
    scheduler = diffusers.EulerDiscreteScheduler(rescale_betas_zero_snr=True)
    assert scheduler.alphas_cumprod[-1] == 2.0**-24 > scheduler.alphas_cumprod[-2] > 0
    schedule = from_diffusers_config({"_class_name": "EulerDiscreteScheduler", "rescale_betas_zero_snr": True}).schedule
    assert schedule.alphas_cumprod[-1] == 0
    assert torch.equal(schedule.alphas_cumprod[:-1].float(), scheduler.alphas_cumprod[:-1])


@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
def test_edm_of_type_heun_to_sigma_min_is_not_a_number_in_diffusers(algorithm: str) -> None:
    """The last level is sigma_min already, so the last step is of length 0: 0/0 there, no step here."""
    config = {
        "_class_name": "EDMDPMSolverMultistepScheduler",
        "final_sigmas_type": "sigma_min",
        "solver_type": "heun",
        "algorithm_type": algorithm,
    }
    assert run_diffusers(made(config, 20), wavy_network)[-1].isnan().any()
    assert run_config(table_of(config, 20), wavy_network)[-1].isfinite().all()


def test_one_edm_step() -> None:
    """diffusers begins one exponential level at sigma_min and ends one karras level at itself. Ours: sigma_max, sigma_min."""
    exponential = {"_class_name": "EDMEulerScheduler", "sigma_schedule": "exponential"}
    assert float(made(exponential, 1).sigmas[0]) == pytest.approx(0.002)
    assert float(table_of(exponential, 1).timesteps[0]) == pytest.approx(0.25 * math.log(80.0))
    karras = {"_class_name": "EDMEulerScheduler", "final_sigmas_type": "sigma_min"}
    assert made(karras, 1).sigmas.tolist() == pytest.approx([80.0, 80.0])
    table = table_of(karras, 1)
    assert float(table.column("k_0")[0]) == pytest.approx(1 - 0.002 / 80, rel=1e-4)


def test_karras_sigmas_that_visit_the_first_timestep_twice() -> None:
    """Cosine betas: diffusers looks for its place, takes the second, and runs out of sigmas; not where the place is set."""
    config = {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True, "beta_schedule": "squaredcos_cap_v2"}
    scheduler = made(config, 10)
    assert scheduler.timesteps[0] == scheduler.timesteps[1]
    assert_follows(table_of(config, 10), wavy_network, run_diffusers(scheduler, wavy_network))
    searching = diffusers.DPMSolverMultistepScheduler.from_config(config)
    searching.set_timesteps(10)
    with pytest.raises(IndexError):
        run_diffusers(searching, wavy_network)
