"""Autoguidance and CFG++: what takes u's place, and what does not change."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch

from fastcond.config import DiffusionConfig
from fastcond.diffusion import NoiseSchedule, ddim, to_diffusers_config
from fastcond.engine import generate
from fastcond.nn import ConditionalUNet
from fastcond.ops import philox_normal
from tests.support.kernels import kernel  # noqa: F401  (runs every test behind each CPU kernel)
from tests.support.networks import small_unet

LABELS = [0, 2, 1]
STEPS = 6


def images(model: ConditionalUNet, labels: list[int] = LABELS, **options: object) -> np.ndarray:
    settings: dict[str, object] = {"sampler": "ddim", "steps": STEPS, "seed": 3, **options}
    return generate(model, labels, **settings).astype(int)  # type: ignore[arg-type]


def by_hand(model: ConditionalUNet, guide: ConditionalUNet, w: float, *, plus_plus: bool = False) -> np.ndarray:
    """DDIM by its definition (Song et al. 2021, eq. 12): eps of the guided prediction, or of the other one."""
    a = NoiseSchedule.linear().alphas_cumprod
    table = ddim(NoiseSchedule.linear(), STEPS)
    times = [*table.timesteps.tolist(), None]
    x = philox_normal(torch.tensor([[3, i] for i in range(3)]), (3, 8, 8)).double()
    label = torch.tensor(LABELS)
    other = torch.full_like(label, 3) if guide is model else label
    model, guide = model.double(), guide.double()
    with torch.no_grad():
        for now, then in pairwise(times):
            t = torch.full((3,), now)
            c, u = model(x, t, label), guide(x, t, other)
            g = u + w * (c - u)
            x_0 = ((x - (1 - a[now]).sqrt() * g) / a[now].sqrt()).clamp(-1, 1)
            a_then = torch.ones(()) if then is None else a[then]
            x = a_then.sqrt() * x_0 + (1 - a_then).sqrt() * (u if plus_plus else g)
    model.float(), guide.float()
    return ((x / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy()


def test_autoguidance_is_its_definition() -> None:
    model, guide = small_unet().eval(), small_unet(seed=5, block_out_channels=(8, 8)).eval()
    drawn = images(model, guidance=1.7, guide=guide)
    assert np.abs(drawn - by_hand(model, guide, 1.7)).max() <= 1
    assert not np.array_equal(drawn, images(model, guidance=1.7)), "not the null label"


def test_a_model_guided_by_itself_is_unguided() -> None:
    model = small_unet().eval()
    assert np.abs(images(model, guidance=3.0, guide=model) - images(model)).max() <= 1


def test_autoguidance_needs_no_null_label() -> None:
    model, guide = small_unet(has_null_label=False).eval(), small_unet(seed=1, has_null_label=False).eval()
    assert images(model, guidance=2.0, guide=guide).shape == (3, 8, 8, 3)
    with pytest.raises(ValueError, match="trained without a null label"):
        images(model, guidance=2.0)


def test_cfg_plus_plus_is_its_definition() -> None:
    model = small_unet().eval()
    drawn = images(model, guidance=0.6, cfg_plus_plus=True)
    assert np.abs(drawn - by_hand(model, model, 0.6, plus_plus=True)).max() <= 1
    assert not np.array_equal(drawn, images(model, guidance=0.6))


def test_cfg_plus_plus_without_guidance_is_the_sampler() -> None:
    model = small_unet().eval()
    assert np.array_equal(images(model, guidance=1.0, cfg_plus_plus=True), images(model))


def test_refusals() -> None:
    model = small_unet().eval()
    with pytest.raises(ValueError, match="the guide's num_classes is 4, the model's 3; they must agree"):
        images(model, guide=small_unet(num_classes=4))
    for change, message in (
        ({"prediction": "v"}, "the guide's prediction is v, the model's eps; they must agree"),
        ({"num_timesteps": 500}, "the guide's num_timesteps is 500, the model's 1000; they must agree"),
        ({"schedule": "cosine"}, r"the guide's alphas_cumprod at timestep \d+ is [\d.]+, the model's [\d.]+; they must agree"),
        ({"scheduler": {"_class_name": "EDMEulerScheduler"}}, "one of the model and its guide has a scheduler of EDM"),
    ):
        with pytest.raises(ValueError, match=message):
            images(model, guide=small_unet(dataclasses.replace(DiffusionConfig(), **change)))
    with pytest.raises(ValueError, match="cfg_plus_plus needs a sampler that noises its prediction again; use ddim"):
        images(model, cfg_plus_plus=True, sampler="ddpm")
    for w in (-0.1, 2.5, [0.5, 1.0, 1.5]):
        with pytest.raises(ValueError, match="with cfg_plus_plus it lies in 0 to 1"):
            images(model, cfg_plus_plus=True, guidance=w)


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
def test_a_guide_agrees_by_the_numbers_of_its_schedule(name: str) -> None:
    model = small_unet().eval()
    same = DiffusionConfig(scheduler=to_diffusers_config(NoiseSchedule.linear(), "eps", name))
    guide = small_unet(same, seed=5).eval()
    assert np.array_equal(images(model, guidance=1.7, guide=guide), images(model, guidance=1.7, guide=small_unet(seed=5).eval()))


def test_a_model_of_edm_is_sampled_by_its_own_scheduler_only() -> None:
    model = small_unet(DiffusionConfig(scheduler={"_class_name": "EDMEulerScheduler"})).eval()
    assert images(model, sampler="scheduler").shape == (3, 8, 8, 3)
    with pytest.raises(ValueError, match="the model is one of EDM, which its own scheduler samples only"):
        images(model, sampler="ddim")


def test_an_image_that_is_not_finite_is_named() -> None:
    model = small_unet().eval()
    with torch.no_grad():
        model.conv_out.bias.fill_(torch.nan)
    with pytest.warns(UserWarning, match="image 0 came out as numbers that are not finite"):
        images(model)
