"""dpmpp2m and heun: diffusers' schedulers, the published algorithms in float64, their order, and what holds for any schedule."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastcond.config import PREDICTIONS
from fastcond.diffusion import NoiseSchedule, StepTable, ddim, dpmpp2m, heun
from fastcond.diffusion.prediction import x_0_coefficients
from fastcond.diffusion.samplers.spacing import alphas_along, spaced_timesteps
from fastcond.ops import philox_normal
from fastcond.ops.philox import INITIAL_NOISE
from tests.support.gaussian_data import MU, S, moments
from tests.support.samplers import DIFFUSERS_PREDICTION, run_scheduler, run_table, seeds_of, wavy_network
from tests.tolerances import FP32_COEFFICIENTS, TRAJECTORY

SHAPE = (2, 2, 4, 4)
SCHEDULES = {"linear": NoiseSchedule.linear(1000), "cosine": NoiseSchedule.cosine(1000)}
SPACINGS = ["trailing", "leading", "linspace"]
UNCLIPPED = float("inf")


@pytest.mark.parametrize("clip", [1.0, UNCLIPPED])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_fifty_steps_of_dpmpp2m_follow_diffusers(prediction: Any, clip: float) -> None:
    """diffusers clamps x_0 where thresholding is on with its default bound of 1."""
    scheduler = pytest.importorskip("diffusers").DPMSolverMultistepScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        prediction_type=DIFFUSERS_PREDICTION[prediction],
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        lower_order_final=True,
        final_sigmas_type="zero",
        timestep_spacing="trailing",
        thresholding=clip == 1.0,
    )
    scheduler.set_timesteps(50)
    table = dpmpp2m(SCHEDULES["linear"], 50, prediction=prediction, clip=clip)
    assert torch.equal(table.timesteps, scheduler.timesteps)
    ours = run_table(table, wavy_network, SHAPE)
    theirs = run_scheduler(scheduler, wavy_network, SHAPE, lambda output, t, x, z: scheduler.step(output, t, x))
    for visited, expected in zip(ours, theirs, strict=True):
        size = max(1.0, float(expected.abs().max()) / 5)  # up to 110 with unclamped eps
        torch.testing.assert_close(visited / size, expected / size, **TRAJECTORY)


@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_fifty_steps_of_heun_follow_diffusers(prediction: Any, spacing: Any) -> None:
    """diffusers keeps x / sqrt(a). In leading's last step but one s falls eightfold, which diffusers corrects and we do not."""
    scheduler = pytest.importorskip("diffusers").HeunDiscreteScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type=DIFFUSERS_PREDICTION[prediction],
        clip_sample=True,
        timestep_spacing=spacing,
    )
    scheduler.set_timesteps(50)
    table = heun(SCHEDULES["linear"], 50, prediction=prediction, spacing=spacing)
    assert table.num_rows == {"trailing": 99, "leading": 98}[spacing]
    assert torch.equal(table.timesteps, scheduler.timesteps.long()[: table.num_rows])
    power = (scheduler.sigmas.square() + 1).sqrt()
    x = philox_normal(seeds_of(SHAPE[0]), SHAPE[1:], stream=INITIAL_NOISE) * power[0]
    theirs = [x / power[0]]
    for evaluation, timestep in enumerate(scheduler.timesteps):
        output = wavy_network(scheduler.scale_model_input(x, timestep), timestep)
        x = scheduler.step(output, timestep, x).prev_sample
        theirs.append(x / power[evaluation + 1])
    ours = run_table(table, wavy_network, SHAPE)
    shared = {"trailing": 100, "leading": 98}[spacing]
    for visited, expected in zip(ours[:shared], theirs[:shared], strict=True):
        torch.testing.assert_close(visited, expected, **TRAJECTORY)


Denoise = Callable[[Tensor, int], Tensor]


def multistep_2m(x: Tensor, denoise: Denoise, alpha: list[float], sigma: list[float]) -> Tensor:
    """Lu et al. 2022, "DPM-Solver++", algorithm 2, with its lambdas and exponentials; first order at both ends."""
    N = len(alpha) - 1
    half_log_snr = [math.log(alpha[i] / sigma[i]) for i in range(N)]
    before = None
    for i in range(N):
        x_0 = denoise(x, i)
        if i == N - 1:
            return x_0
        h = half_log_snr[i + 1] - half_log_snr[i]
        D = x_0
        if before is not None:
            r = (half_log_snr[i] - half_log_snr[i - 1]) / h
            D = (1 + 1 / (2 * r)) * x_0 - 1 / (2 * r) * before
        x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * (math.exp(-h) - 1) * D
        before = x_0
    raise AssertionError


def algorithm_2(x: Tensor, denoise: Denoise, alpha: list[float], sigma: list[float]) -> Tensor:
    """Karras et al. 2022, algorithm 2 without churn, in y = x/alpha; s must not fall more than threefold to be corrected."""
    s = [sigma[i] / alpha[i] for i in range(len(alpha))]
    y = x / alpha[0]
    for i in range(len(alpha) - 1):
        d = (y - denoise(alpha[i] * y, i)) / s[i]
        y_next = y + (s[i + 1] - s[i]) * d
        if s[i + 1] * 3 >= s[i]:
            d_next = (y_next - denoise(alpha[i + 1] * y_next, i + 1)) / s[i + 1]
            y_next = y + (s[i + 1] - s[i]) * (d + d_next) / 2
        y = y_next
    return y


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 40])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("sampler", "algorithm"), [(dpmpp2m, multistep_2m), (heun, algorithm_2)])
def test_tables_are_the_published_algorithms(sampler: Any, algorithm: Any, schedule: str, spacing: Any, steps: int) -> None:
    timesteps = spaced_timesteps(1000, steps, spacing)
    a, _ = alphas_along(SCHEDULES[schedule], timesteps)
    p_x, p_o = x_0_coefficients("v", a)

    def denoise(x: Tensor, i: int) -> Tensor:
        return (p_x[i] * x + p_o[i] * wavy_network(x, timesteps[i])).clamp(-1, 1)

    alpha, sigma = [*a.sqrt().tolist(), 1.0], [*(1 - a).sqrt().tolist(), 0.0]
    x = philox_normal(seeds_of(SHAPE[0]), SHAPE[1:], stream=INITIAL_NOISE).double()
    table = sampler(SCHEDULES[schedule], steps, prediction="v", spacing=spacing)
    ours = run_table(table, wavy_network, SHAPE)[-1]
    torch.testing.assert_close(ours.double(), algorithm(x, denoise, alpha, sigma), **TRAJECTORY)


@pytest.mark.parametrize(("sampler", "order"), [(ddim, 1), (dpmpp2m, 2), (heun, 2)])
def test_order_of_convergence(sampler: Any, order: int) -> None:
    """Twice the steps leave 2^-order of the error of the probability-flow ODE, half-way down, where every run's grid has a point.

    For N(MU, S^2) the ODE keeps (x - alpha MU) / sqrt(a S^2 + 1 - a), so its solution is known.
    """
    T = 4096
    schedule = NoiseSchedule.linear(T)
    a = schedule.alphas_cumprod[[T - 1, T // 2 - 1]]
    alpha, power = a.sqrt(), (a * S**2 + 1 - a).sqrt()
    std = float(power[1] / power[0])
    mean = float(alpha[1]) * MU - std * float(alpha[0]) * MU

    def error(steps: int) -> float:
        table = sampler(schedule, steps, prediction="v", clip=UNCLIPPED)
        rows = steps // 2 * (2 if sampler is heun else 1)
        assert int(table.timesteps[rows]) == T // 2 - 1
        found = moments(table, "v", schedule)[rows - 1]
        return abs(found[0] - mean) + abs(found[1] - std)

    errors = [error(steps) for steps in (16, 32, 64, 128)]
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.2), errors


def test_second_order_is_nearer_at_equal_evaluations() -> None:
    """20 evaluations of a Gaussian's denoiser, to the end: the error of mean and standard deviation."""

    def error(table: StepTable) -> float:
        assert table.num_rows <= 20
        found = moments(table, "v", SCHEDULES["linear"])[-1]
        return abs(found[0] - MU) + abs(found[1] - S)

    first = error(ddim(SCHEDULES["linear"], 20, prediction="v", clip=UNCLIPPED))
    assert error(dpmpp2m(SCHEDULES["linear"], 20, prediction="v", clip=UNCLIPPED)) < first / 2
    assert error(heun(SCHEDULES["linear"], 10, prediction="v", clip=UNCLIPPED)) < first


@st.composite
def runs(draw: st.DrawFn) -> tuple[NoiseSchedule, StepTable, str, str, int]:
    """(schedule, table, sampler's name, spacing, steps), unclamped, of any length and kind."""
    T = draw(st.integers(2, 400))
    schedule = NoiseSchedule.cosine(T) if draw(st.booleans()) else NoiseSchedule.linear(max(T, 21))
    steps = draw(st.integers(1, schedule.num_timesteps))
    prediction = draw(st.sampled_from(["v", "x_0"]))
    if schedule.num_timesteps > 1 and draw(st.booleans()):
        schedule = schedule.rescaled_to_zero_terminal_snr()
    sampler, spacing = draw(st.sampled_from([ddim, dpmpp2m, heun])), draw(st.sampled_from(SPACINGS))
    table = sampler(schedule, steps, prediction=prediction, clip=UNCLIPPED, spacing=spacing)
    return schedule, table, prediction, spacing, steps


@given(run=runs())
def test_a_single_image_is_reached_exactly(run: tuple[NoiseSchedule, StepTable, str, Any, int]) -> None:
    """Data that is one point MU: every prediction is MU, no order has an error, and x stays on alpha MU + sigma eps."""
    schedule, table, prediction, _, _ = run
    a = torch.cat([schedule.alphas_cumprod[table.timesteps], torch.ones(1, dtype=torch.float64)])
    alpha, sigma = a.sqrt(), (1 - a).sqrt()
    for row, (mean, std) in enumerate(moments(table, prediction, schedule, spread=0.0), start=1):
        scale = float(sigma[row] / sigma[0])
        assert std == pytest.approx(scale, abs=FP32_COEFFICIENTS * table.num_rows)
        assert mean == pytest.approx(float(alpha[row] - scale * alpha[0]) * MU, abs=FP32_COEFFICIENTS * table.num_rows)


@given(run=runs())
def test_rows_visit_the_grid(run: tuple[NoiseSchedule, StepTable, str, Any, int]) -> None:
    """Every timestep of the run once, or twice with heun, whose second visit corrects nothing but by the change of x_0."""
    schedule, table, _, spacing, steps = run
    grid, visits = table.timesteps.unique_consecutive(return_counts=True)
    assert torch.equal(grid, spaced_timesteps(schedule.num_timesteps, steps, spacing))
    assert bool(table.coefficients[:, [0, 1, 3, 4, 5, 6, 7]].isfinite().all()) and not table.draws_noise
    assert float(table.column("k_h")[0]) == 0, "nothing comes before the first row"
    assert table.coefficients[-1, 3:].tolist() == pytest.approx([0, 1, 0, 0, 0]), "a run ends in its x_0 prediction"
    assert int(visits.max()) <= 2 and int(visits[0]) == 1
    repeated = torch.zeros(table.num_rows, dtype=torch.bool)
    repeated[1:] = table.timesteps[1:] == table.timesteps[:-1]
    correctors = repeated.roll(-1)  # the first of two rows at one timestep
    assert bool((table.column("k_x")[correctors] == 1).all())
    assert torch.equal(table.column("k_0")[correctors], -table.column("k_h")[correctors])


def test_correctors_are_left_out_where_they_would_harm() -> None:
    """The cosine schedule's first step of fifty: s falls from 20,000 to 30. Ten steps, corrected, would miss by 4.7, not 0.02."""
    table = heun(SCHEDULES["cosine"], 50)
    assert table.timesteps[:4].tolist() == [999, 979, 979 - 20, 979 - 20]
    for steps in (3, 5, 10, 50):
        final = {
            sampler: moments(sampler(SCHEDULES["cosine"], steps, prediction="v", clip=UNCLIPPED), "v", SCHEDULES["cosine"])[-1]
            for sampler in (ddim, heun)
        }
        errors = {sampler: abs(mean - MU) + abs(std - S) for sampler, (mean, std) in final.items()}
        assert errors[heun] < errors[ddim]
    assert heun(SCHEDULES["linear"], 1).num_rows == 1 and not heun(SCHEDULES["linear"], 1).keeps_history
