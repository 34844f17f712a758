"""Guidance rescale and dynamic thresholding: the fused step where they act on nothing, and diffusers' formulas where they do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastcond.diffusion import SAMPLERS, NoiseSchedule, StepTable, ddim, rescale_guidance
from fastcond.engine import generate
from fastcond.engine.composed_step import composed_step
from fastcond.ops import diffusion_step
from tests.support.networks import small_unet
from tests.support.samplers import seeds_of
from tests.tolerances import ONE_STEP, TRAJECTORY

SHAPE = (3, 2, 5, 4)
SCHEDULE = NoiseSchedule.linear(1000)
GUIDANCE = torch.tensor([1.0, 3.0, 7.5])


def drawn(size: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {name: size * torch.randn(SHAPE, generator=generator) for name in ("x", "out_cond", "out_uncond", "history")}


def composed(table: StepTable, row: int, inputs: dict[str, Any], **options: Any) -> tuple[Tensor, Tensor]:
    out, x_0 = torch.full((6, *SHAPE[1:]), torch.nan), torch.full(SHAPE, torch.nan)
    composed_step(
        **inputs, table=table, row=torch.tensor([row]), seeds=seeds_of(3), guidance=GUIDANCE, out=out, out_x_0=x_0, **options
    )
    assert torch.equal(out[:3], out[3:])
    return out[:3], x_0


@pytest.mark.parametrize("percentile", [None, 0.5])
@pytest.mark.parametrize("row", [0, 1, 8, 9])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_where_they_act_on_nothing_it_is_the_fused_step(sampler: str, row: int, percentile: float | None) -> None:
    """Predictions of x_0 within [-1, 1] are neither clamped nor thresholded."""
    table = SAMPLERS[sampler](SCHEDULE, 10, prediction="x_0")
    inputs = drawn(0.03)
    expected = diffusion_step(
        inputs["x"], inputs["out_cond"], inputs["out_uncond"], table, torch.tensor([row]), seeds=seeds_of(3), guidance=GUIDANCE,
        history=inputs["history"],
    )  # fmt: skip
    for ours, fused in zip(composed(table, row, inputs, percentile=percentile), expected, strict=True):
        torch.testing.assert_close(ours, fused, **ONE_STEP)


@pytest.mark.parametrize("prediction", ["eps", "v", "x_0"])
def test_steps_of_ddim_follow_diffusers(prediction: Any) -> None:
    """Its rescale_noise_cfg before the scheduler, whose thresholding has Imagen's unbounded s."""
    diffusers = pytest.importorskip("diffusers")
    guiders = pytest.importorskip("diffusers.guiders.guider_utils")
    scheduler = diffusers.DDIMScheduler(
        prediction_type={"eps": "epsilon", "v": "v_prediction", "x_0": "sample"}[prediction],
        beta_start=1e-4,
        beta_end=0.02,
        timestep_spacing="trailing",
        thresholding=True,
        dynamic_thresholding_ratio=0.9,
        sample_max_value=1e6,
    )
    scheduler.set_timesteps(10)
    table = ddim(SCHEDULE, 10, prediction=prediction)
    inputs = drawn()
    for row in (2, 5, 9):
        ours, x_0 = composed(table, row, {**inputs, "history": None}, guidance_rescale=0.7, percentile=0.9)
        guided = inputs["out_uncond"] + GUIDANCE[:, None, None, None] * (inputs["out_cond"] - inputs["out_uncond"])
        guided = guiders.rescale_noise_cfg(guided, inputs["out_cond"], 0.7)
        theirs = scheduler.step(guided, scheduler.timesteps[row], inputs["x"])
        torch.testing.assert_close(x_0, theirs.pred_original_sample, **TRAJECTORY)
        torch.testing.assert_close(ours, theirs.prev_sample, **TRAJECTORY)


def test_rescale_alone_is_the_fused_step_of_the_rescaled_output() -> None:
    table, inputs = ddim(SCHEDULE, 10), {**drawn(), "history": None}
    guided = inputs["out_uncond"] + GUIDANCE[:, None, None, None] * (inputs["out_cond"] - inputs["out_uncond"])
    rescaled = rescale_guidance(guided, inputs["out_cond"], 0.7)
    expected = diffusion_step(inputs["x"], rescaled, None, table, torch.tensor([4]), seeds=seeds_of(3))
    for ours, fused in zip(composed(table, 4, inputs, guidance_rescale=0.7), expected, strict=True):
        assert torch.equal(ours, fused)


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp2m"])
def test_generate_takes_them(sampler: str) -> None:
    model = small_unet().eval()

    def images(guidance: float, **options: Any) -> np.ndarray:
        return generate(model, [0, 1], guidance=guidance, sampler=sampler, steps=4, **options)

    plain = images(5.0)
    assert np.array_equal(images(5.0, guidance_rescale=0.0, dynamic_threshold=None), plain), "off by default"
    assert not np.array_equal(images(5.0, guidance_rescale=0.7), plain)
    assert not np.array_equal(images(5.0, dynamic_threshold=0.8), plain)
    unguided = images(1.0).astype(int)
    assert np.abs(images(1.0, guidance_rescale=0.7) - unguided).max() <= 1, "nothing to rescale without guidance"
