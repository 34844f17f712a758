"""Pipeline: the scheduler that it is given, in place of a sampler of ours, and how many steps that takes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastcond import Pipeline, ddim
from fastcond.config import DiffusionConfig
from fastcond.engine import step_table
from tests.support.networks import small_unet
from tests.support.pipelines import LABELS, pixels, small_pipeline
from tests.tolerances import GRAY_LEVELS


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return small_pipeline()


@pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverMultistepScheduler", "DDPMScheduler"])
def test_a_scheduler_of_diffusers_is_swapped_in(tmp_path: Path, name: str) -> None:
    """The line that users of diffusers write; it is saved with the network."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    own = Pipeline(small_unet(conditioning="bias").eval())
    own.save_pretrained(tmp_path / "before")
    pipeline = Pipeline.from_pretrained(tmp_path / "before")
    scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config, timestep_spacing="linspace")
    before = pixels(pipeline(LABELS, num_inference_steps=6, seed=1))
    pipeline.scheduler = own.scheduler = scheduler
    drawn = pixels(pipeline(LABELS, num_inference_steps=6, seed=1))
    assert not np.array_equal(drawn, before)
    assert np.abs(drawn - pixels(own(LABELS, num_inference_steps=6, seed=1)).astype(int)).max() <= GRAY_LEVELS
    pipeline.save_pretrained(tmp_path / "after")
    assert type(diffusers.DiffusionPipeline.from_pretrained(tmp_path / "after").scheduler).__name__ == name
    again = Pipeline.from_pretrained(tmp_path / "after")
    assert np.array_equal(pixels(again(LABELS, num_inference_steps=6, seed=1)), drawn)
    with pytest.raises(ValueError, match="scheduler is str; give a scheduler of diffusers, or its config"):
        pipeline.scheduler = "DDIM"


def test_a_scheduler_is_given_as_itself_or_as_its_config() -> None:
    """A config of diffusers names no class where the scheduler was made by hand; its settings do."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    pipeline = Pipeline(small_unet(conditioning="bias").eval())
    made = {
        "DDPMScheduler": {"variance_type": "fixed_large"},
        "DDIMScheduler": {"timestep_spacing": "trailing"},
        "DPMSolverMultistepScheduler": {"solver_order": 1},
        "HeunDiscreteScheduler": {},
        "EulerDiscreteScheduler": {"trained_betas": np.linspace(1e-4, 0.02, 1000, dtype=np.float32)},
    }
    for name, settings in made.items():
        scheduler = getattr(diffusers, name)(**settings)
        again = getattr(diffusers, name).from_config(scheduler.config)
        drawn = []
        for given in (scheduler, scheduler.config, again.config, {"_class_name": name, **settings}):
            pipeline.scheduler = given
            assert pipeline.scheduler.config["_class_name"] == name
            json.dumps(dict(pipeline.scheduler.config))
            drawn.append(pixels(pipeline([0], num_inference_steps=3, seed=1)))
        other = Pipeline(pipeline.unet)
        other.scheduler = pipeline.scheduler
        drawn.append(pixels(other([0], num_inference_steps=3, seed=1)))
        assert all(np.array_equal(images, drawn[0]) for images in drawn), name
    with pytest.raises(ValueError, match="config has no _class_name, and its settings do not tell; give the scheduler itself"):
        pipeline.scheduler = diffusers.PNDMScheduler().config
    with pytest.raises(ValueError, match="_class_name is 'PNDMScheduler'; schedulers that can be followed are"):
        pipeline.scheduler = diffusers.PNDMScheduler()


def test_a_scheduler_of_more_timesteps_than_a_learned_embedding_has() -> None:
    model = small_unet(DiffusionConfig(num_timesteps=50), conditioning="bias", time_embedding="learned", num_timesteps=50)
    pipeline = Pipeline(model.eval())
    with pytest.raises(ValueError, match="num_train_timesteps is 1000; the network's learned time embedding has 50 rows"):
        pipeline.scheduler = {"_class_name": "DDIMScheduler"}
    assert pipeline.sampler == "ddpm"
    pipeline.scheduler = {"_class_name": "DDIMScheduler", "num_train_timesteps": 50}
    assert len(pipeline([0], num_inference_steps=2).images) == 1


def test_a_sampler_that_no_scheduler_says(tmp_path: Path, pipeline: Pipeline) -> None:
    unet = pipeline.unet
    assert Pipeline(unet, sampler=ddim).scheduler.config["_class_name"] == "DDIMScheduler"
    samplers = (partial(ddim, eta=0.5), step_table(unet, "ddim", 3))
    for sampler in samplers:
        other = Pipeline(unet, sampler=sampler)
        drawn = pixels(other([0], num_inference_steps=3, seed=1))
        assert np.array_equal(drawn, pixels(pipeline([0], num_inference_steps=3, seed=1, sampler=sampler)))
        with pytest.raises(ValueError, match="which no scheduler of diffusers says; give it to the calls as sampler="):
            other.save_pretrained(tmp_path / "saved")
        assert not (tmp_path / "saved").exists()
        other.scheduler = {"_class_name": "DDIMScheduler"}
        assert other.config["scheduler"] == ("diffusers", "DDIMScheduler")
    for name in ("edm", "foo", "scheduler"):
        with pytest.raises(ValueError, match=f"sampler is '{name}'; choose one of ddpm, ddim, dpmpp2m, heun, or give"):
            Pipeline(unet, sampler=name)


def test_steps_by_default() -> None:
    """50, or T where that is less, also of a scheduler that was assigned."""
    pipeline, rows = Pipeline(small_unet(DiffusionConfig(num_timesteps=20), conditioning="bias").eval()), []

    def drawn() -> int:
        rows.clear()
        pipeline([0], on_step=lambda row, first, x_0: rows.append(row))
        return len(rows)

    assert drawn() == 20
    for timesteps, steps in ((30, 30), (1000, 50)):
        pipeline.scheduler = {"_class_name": "DDIMScheduler", "num_train_timesteps": timesteps}
        assert drawn() == steps


def test_eta(tmp_path: Path) -> None:
    """Of our ddim, and of a DDIMScheduler."""
    own = Pipeline(small_unet(conditioning="bias").eval(), sampler="ddim")
    own.save_pretrained(tmp_path / "saved")
    settings: dict[str, Any] = {"num_inference_steps": 5, "seed": 1}
    for pipeline in (own, Pipeline.from_pretrained(tmp_path / "saved")):
        plain, none, noisy = (pixels(pipeline(LABELS, **settings, **eta)) for eta in ({}, {"eta": 0.0}, {"eta": 1.0}))
        assert np.array_equal(plain, none) and not np.array_equal(plain, noisy)
        assert np.array_equal(noisy, pixels(pipeline(LABELS, **settings, sampler=partial(ddim, eta=1.0))))
        with pytest.raises(ValueError, match=r"eta is 1.0, a setting of DDIM; leave it out, or use sampler='ddim'"):
            pipeline(LABELS, **settings, eta=1.0, sampler="ddpm")
