"""rng="torch": the images of a diffusers pipeline, from the same network and the same generators."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastcond.engine import generate, generate_batches, to_uint8
from fastcond.engine.composed_step import composed_step
from fastcond.engine.torch_noise import TorchNoise
from fastcond.nn import ConditionalUNet
from fastcond.ops import diffusion_step, philox_normal
from fastcond.ops.philox import STEP_NOISE
from tests.support.networks import small_unet
from tests.support.samplers import seeds_of
from tests.support.schedulers import made, table_of
from tests.tolerances import GRAY_LEVELS, ONE_STEP

LABELS = [0, 2, 1]
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
RUNS: list[dict[str, Any]] = [
    {"_class_name": "DDPMScheduler"},
    {"_class_name": "DDPMScheduler", "variance_type": "learned_range"},
    {"_class_name": "DDPMScheduler", "thresholding": True, "sample_max_value": 2.0, "steps_offset": 1},
    {"_class_name": "DDIMScheduler", "timestep_spacing": "trailing", "eta": 0.7},
    {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++", "thresholding": True},
    {"_class_name": "HeunDiscreteScheduler", "clip_sample": True, "beta_start": 1e-4, "beta_end": 0.02},
    {"_class_name": "EulerDiscreteScheduler", "prediction_type": "v_prediction"},
    {"_class_name": "EDMEulerScheduler"},
]


@torch.no_grad()
def pipeline(config: dict[str, Any], model: ConditionalUNet, labels: list[int], steps: int, generator: Any) -> Tensor:
    """diffusers' loop: initial noise, then the scheduler's, all from the generator or the images' own."""
    from diffusers.utils.torch_utils import randn_tensor

    options = {"eta": config["eta"]} if "eta" in config else {}
    scheduler = made({key: value for key, value in config.items() if key != "eta"}, steps)
    if config["_class_name"] in ("DDPMScheduler", "DDIMScheduler") or "sde-dpmsolver++" in config.values():
        options["generator"] = generator
    channels = model.config.in_channels
    x = randn_tensor((len(labels), channels, *model.config.image_size), generator=generator) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        output = model(scheduler.scale_model_input(x, t), t.expand(len(labels)), torch.tensor(labels))
        x = scheduler.step(output, t, x, **options).prev_sample
    return x


def settings_of(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    own = {"eta": config["eta"]} if "eta" in config else {}
    return {key: value for key, value in config.items() if key != "eta"}, own


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("config", RUNS, ids=lambda config: "-".join(str(value) for value in config.values()))
def test_images_are_a_pipelines(config: dict[str, Any], each: bool) -> None:
    model = small_unet(out_channels=6 if config.get("variance_type") == "learned_range" else 3).eval()
    settings, own = settings_of(config)
    table = table_of(settings, 8, **own)

    def generators() -> Any:
        return [torch.Generator().manual_seed(7 + i) for i in range(3)] if each else torch.Generator().manual_seed(7)

    expected = to_uint8(pipeline(config, model, LABELS, 8, generators()))
    ours = generate(model, LABELS, sampler=table, rng=generators() if each else "torch", seed=7)
    assert np.abs(ours.astype(int) - expected.astype(int)).max() <= GRAY_LEVELS
    other = generate(model, LABELS, sampler=table, seed=7)
    assert np.abs(other.astype(int) - expected.astype(int)).max() > GRAY_LEVELS, "philox is other noise"


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "DDPMScheduler"},
        {"_class_name": "DDIMScheduler", "eta": 0.7},
        {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"},
        {"_class_name": "EDMDPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"},
    ],
    ids=lambda config: config["_class_name"],
)
def test_a_second_batch_is_a_second_call_of_the_pipeline(config: dict[str, Any]) -> None:
    """With the same generator: also where the scheduler draws for a last step that adds nothing."""
    model, generator = small_unet().eval(), torch.Generator().manual_seed(7)
    settings, own = settings_of(config)
    expected = np.concatenate([to_uint8(pipeline(config, model, part, 5, generator)) for part in (LABELS[:2], LABELS[2:])])
    ours = generate(model, LABELS, sampler=table_of(settings, 5, **own), rng="torch", seed=7, batch_size=2)
    assert np.abs(ours.astype(int) - expected.astype(int)).max() <= GRAY_LEVELS


def test_a_list_of_generators_does_not_depend_on_the_batch() -> None:
    model, table = small_unet().eval(), table_of({"_class_name": "DDPMScheduler"}, 5)

    def images(batch_size: int, rng: Any) -> np.ndarray:
        return generate(model, LABELS, sampler=table, batch_size=batch_size, rng=rng, seed=1)

    def own() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(i) for i in range(3)]

    assert np.abs(images(3, own()).astype(int) - images(2, own()).astype(int)).max() <= GRAY_LEVELS
    assert np.array_equal(images(3, torch.Generator().manual_seed(1)), images(3, "torch"))
    assert not np.array_equal(images(2, "torch"), images(3, "torch")), "one generator draws a batch at a time"


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "heun"])
def test_a_later_start_leaves_the_other_batches_as_they_are(sampler: str) -> None:
    """What one generator drew for the batches before is drawn again, without their network."""
    model, labels = small_unet().eval(), [0, 1, 2, 0, 1]
    settings: dict[str, Any] = {"sampler": sampler, "steps": 4, "batch_size": 2, "seed": 5, "rng": "torch"}
    whole = generate(model, labels, **settings)
    for start in (2, 4):
        later = np.concatenate(list(generate_batches(model, labels, start=start, **settings)))
        assert np.array_equal(later, whole[start:])
    assert not list(generate_batches(model, labels, start=5, **settings))
    with pytest.raises(ValueError, match=r"start is 3, within a batch of 2, whose noise one torch\.Generator draws"):
        generate_batches(model, labels, start=3, **settings)


def test_noise_is_drawn_in_the_networks_dtype() -> None:
    noise = TorchNoise(torch.Generator().manual_seed(0), (2, 3, 4, 4), [True], torch.bfloat16, torch.device("cpu"))
    expected = torch.randn((2, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.bfloat16)
    assert noise.current.dtype == torch.float32 and torch.equal(noise.current, expected.float())


def test_what_does_not_fit_is_refused() -> None:
    model, learned = small_unet().eval(), table_of({"_class_name": "DDPMScheduler", "variance_type": "learned"}, 4)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"rng": "numpy"}, "rng is 'numpy'; choose philox or torch"),
        ({"rng": [torch.Generator()]}, "rng is a list of 1; give 3 torch.Generator, one a label"),
        ({"sampler": learned}, "the network has 3 channels, none for the sampler's learned variance; use fixed_small"),
    ]
    for options, message in wrong:
        with pytest.raises(ValueError, match=message):
            generate(model, LABELS, **options)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_a_variance_that_is_not_asked_for_is_left_aside(sampler: str, guidance: float) -> None:
    """A network of 6 channels whose first 3 are those of one with 3."""
    wide, narrow = small_unet(out_channels=6).eval(), small_unet().eval()
    weights = wide.state_dict()
    narrow.load_state_dict({name: value[:3] if name.startswith("conv_out") else value for name, value in weights.items()})
    ours, expected = (generate(model, LABELS, sampler=sampler, steps=4, guidance=guidance) for model in (wide, narrow))
    assert np.abs(ours.astype(int) - expected.astype(int)).max() <= GRAY_LEVELS


@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_guidance_leaves_the_variance_to_the_condition(variance: str) -> None:
    """As in Dhariwal & Nichol 2021 and DiT: g of the first C channels, v of the conditional half."""
    table = table_of({"_class_name": "DDPMScheduler", "variance_type": variance}, 10)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((2, 3, 4, 4), generator=generator)
    cond, uncond = torch.rand((2, 2, 6, 4, 4), generator=generator).unbind()
    row, seeds, w = torch.tensor([4]), seeds_of(2), torch.tensor([2.0, 5.0])
    out, x_0 = torch.empty_like(x), torch.empty_like(x)
    composed_step(x, cond, uncond, table, row, seeds=seeds, guidance=w, history=None, out=out, out_x_0=x_0)
    mean, _ = diffusion_step(x, cond[:, :3], uncond[:, :3], table, row, seeds=seeds, guidance=w)
    t, before = table.timesteps[4:6]
    a = made({"_class_name": "DDPMScheduler"}, 10).alphas_cumprod
    beta = 1 - a[t] / a[before]
    low, high, v = ((1 - a[before]) / (1 - a[t]) * beta).log(), beta.log(), cond[:, 3:]
    variances = v if variance == "learned" else torch.exp((v + 1) / 2 * high + (1 - v) / 2 * low)
    expected = mean + variances.sqrt() * philox_normal(seeds, (3, 4, 4), step=4, stream=STEP_NOISE)
    torch.testing.assert_close(out, expected, **ONE_STEP)
