"""Which timesteps a run visits, against diffusers' set_timesteps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastcond.diffusion import NoiseSchedule
from fastcond.diffusion.samplers.spacing import alphas_along, spaced_timesteps

SPACINGS = ["trailing", "leading", "linspace"]


@pytest.mark.parametrize("T", [200, 1000])
@pytest.mark.parametrize("steps", [1, 2, 7, 10, 50, 99, 128, 200])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_timesteps_are_diffusers(spacing: Any, steps: int, T: int) -> None:
    scheduler = pytest.importorskip("diffusers").DDPMScheduler(num_train_timesteps=T, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    ours = spaced_timesteps(T, steps, spacing)
    if spacing == "linspace" and steps == 1:
        # The known difference: diffusers' single step is timestep 0, where nothing is left to remove.
        assert scheduler.timesteps.tolist() == [0] and ours.tolist() == [T - 1]
    else:
        assert torch.equal(ours, scheduler.timesteps)


@given(T=st.integers(1, 1200), data=st.data(), spacing=st.sampled_from(SPACINGS))
def test_timesteps_fall_strictly_within_the_schedule(T: int, data: st.DataObject, spacing: Any) -> None:
    steps = data.draw(st.integers(1, T))
    t = spaced_timesteps(T, steps, spacing)
    assert t.dtype == torch.int64 and t.shape == (steps,)
    assert bool((t[1:] < t[:-1]).all()) and int(t[-1]) >= 0 and int(t[0]) < T
    if spacing != "leading":
        assert int(t[0]) == T - 1
    if spacing == "leading" or (spacing == "linspace" and steps > 1):
        assert int(t[-1]) == 0
    if steps == T:
        assert t.tolist() == list(range(T))[::-1]


def test_the_image_comes_after_the_last_row() -> None:
    schedule = NoiseSchedule.linear(100)
    a, a_next = alphas_along(schedule, torch.tensor([99, 50, 3]))
    assert torch.equal(a, schedule.alphas_cumprod[[99, 50, 3]])
    assert torch.equal(a_next[:-1], a[1:]) and a_next[-1] == 1


@pytest.mark.parametrize("steps", [0, -1, 201])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_steps_outside_the_schedule_are_refused(steps: int, spacing: Any) -> None:
    with pytest.raises(ValueError, match=f"steps is {steps}; this model was trained with 200 timesteps"):
        spaced_timesteps(200, steps, spacing)


def test_unknown_spacing_is_refused() -> None:
    wrong: Any = "karras"
    with pytest.raises(ValueError, match="spacing is 'karras'"):
        spaced_timesteps(200, 10, wrong)
