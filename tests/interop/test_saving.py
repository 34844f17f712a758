"""save_diffusers: what diffusers cannot express is refused, and the scheduler written samples as the model was sampled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fastcond.config import DiffusionConfig
from fastcond.diffusion.step_table import COLUMNS
from fastcond.engine import generate, step_table
from fastcond.interop import load_diffusers, save_diffusers
from fastcond.interop.scheduler_choice import scheduler_config
from fastcond.nn import ConditionalUNet
from tests.support.networks import SKIP_BLOCKS, small_unet
from tests.tolerances import GRAY_LEVELS

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

LABELS = [0, 1, 2, 0, 1, 2]
SHORT = DiffusionConfig(num_timesteps=200, prediction="x_0")
ZERO_SNR = DiffusionConfig(zero_terminal_snr=True, prediction="v")


def scheduler_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))


def load_all(folder: Path) -> tuple[Any, dict[str, Any]]:
    """diffusers' network, and which weights it missed or did not use."""
    kind = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["unet"][1]
    return getattr(diffusers, kind).from_pretrained(folder / "unet", output_loading_info=True)


def named(argument: Any) -> str:
    """Of a parameter that is a scheduler, its class."""
    return argument if isinstance(argument, str) else type(argument).__name__


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"resample": "resnet"}, r"resample is .*'resnet'.*, which cannot be expressed in diffusers' UNet2DConditionModel"),
        ({"resample_up": "resnet"}, r"resample is .*'resnet'.*; there it would be .*'conv'"),
        ({"mid_block": False}, "mid_block is False, which cannot be expressed in diffusers' UNet2DConditionModel; there"),
        ({"mid_attention": False}, "mid_attention is False, which cannot be expressed"),
        ({"class_embedding_mlp": True}, "class_embedding_mlp is True, which cannot be expressed"),
        ({"time_embedding": "fourier"}, "time_embedding is 'fourier', .* there it would be 'positional'"),
        ({"time_embedding": "learned", "num_timesteps": 1000}, "time_embedding is 'learned'"),
    ],
)
def test_label_attention_that_diffusers_lacks(tmp_path: Path, network: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        save_diffusers(small_unet(conditioning="label_attention", **network), tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_networks_of_tables_that_diffusers_lacks(tmp_path: Path) -> None:
    three = small_unet(conditioning="bias", class_embedding="none", num_classes=3, has_null_label=False)
    with pytest.raises(ValueError, match=r"num_classes is 3, which cannot be expressed in diffusers' UNet2DModel; there .* 1"):
        save_diffusers(three, tmp_path / "saved")


@pytest.mark.parametrize(
    "network",
    [
        {"conditioning": "label_attention"},
        {"conditioning": "label_attention", "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")},
        {"conditioning": "label_attention", "downsample_padding": 0, "time_embedding_dim": 24, "label_dropout": 0.1},
        {"conditioning": "label_attention", "attention_resolutions": (8, 4), "mid_block_scale_factor": 2.0, "center_input": True},
        {"conditioning": "label_attention", "mid_attention_norm_groups": 8, "resample_up": "conv", "num_timesteps": 1000},
        {"conditioning": "bias", "resample": "resnet", "resample_up": "conv"},
        {"conditioning": "bias", "mid_block": False, "mid_attention_norm_groups": 0, "mid_attention": False},
        {"conditioning": "scale_shift", "mid_attention_norm_groups": 8, "attention_resolutions": ()},
        {"conditioning": "scale_shift", "resample": "resnet", "attention_resolutions": (8, 4), "mid_attention_norm_groups": 0},
        SKIP_BLOCKS,
    ],
    ids=str,
)
def test_what_is_written_is_all_that_diffusers_needs(tmp_path: Path, network: dict[str, Any]) -> None:
    """No weight missing and none left over, and the same network when it is read again."""
    model = small_unet(**network).eval()
    save_diffusers(model, tmp_path / "saved")
    theirs, info = load_all(tmp_path / "saved")
    assert not any(info.values()), info
    again = load_diffusers(tmp_path / "saved")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    # The betas come back as diffusers has them, in float32.
    ours, read_again = (
        generate(network, [0, 2], sampler="ddim", steps=2, guidance=2.0).astype(int) for network in (model, again)
    )
    assert np.abs(ours - read_again).max() <= GRAY_LEVELS
    assert theirs.config.sample_size == 8


@pytest.mark.parametrize("steps", [7, 20, 50])
@pytest.mark.parametrize("rng", ["philox", "torch"])
@pytest.mark.parametrize(
    "diffusion", [DiffusionConfig(), ZERO_SNR, DiffusionConfig(num_timesteps=200, prediction="x_0")], ids=str
)
def test_a_model_and_its_conversion_draw_the_same(tmp_path: Path, diffusion: DiffusionConfig, rng: Any, steps: int) -> None:
    """Each with its default: our ddpm, and the scheduler that is written. They start at T - 1, whatever the steps."""
    model = small_unet(diffusion, conditioning="bias").eval()
    save_diffusers(model, tmp_path / "saved")
    again = load_diffusers(tmp_path / "saved")
    table, own = step_table(again, "scheduler", steps), step_table(model, "ddpm", steps)
    assert torch.equal(table.timesteps, own.timesteps) and table.timesteps[0] == diffusion.num_timesteps - 1
    ours, theirs = (
        generate(network, LABELS, steps=steps, rng=rng, guidance=1.5, sampler=sampler).astype(int)
        for network, sampler in ((model, "ddpm"), (again, "scheduler"))
    )
    assert np.abs(ours - theirs).max() <= GRAY_LEVELS


@pytest.mark.parametrize(
    ("scheduler", "sampler"),
    [("DDIMScheduler", "ddim"), ("DPMSolverMultistepScheduler", "dpmpp2m"), ("HeunDiscreteScheduler", "heun")],
)
def test_a_class_samples_as_our_sampler_of_its_kind(tmp_path: Path, scheduler: str, sampler: str) -> None:
    """On the same timesteps, and clamped: these networks leave [-1, 1] everywhere."""
    model = small_unet(DiffusionConfig(prediction="v"), conditioning="bias").eval()
    save_diffusers(model, tmp_path / "saved", scheduler=scheduler)
    again = load_diffusers(tmp_path / "saved")
    assert type(diffusers.DDPMPipeline.from_pretrained(tmp_path / "saved").scheduler).__name__ == scheduler
    assert (step_table(again, "scheduler", 20).coefficients[:, COLUMNS.index("c")] == 1).all()
    runs = ((model, sampler), (again, "scheduler"))
    ours, theirs = (generate(network, LABELS, steps=20, sampler=name).astype(int) for network, name in runs)
    assert np.abs(ours - theirs).max() <= GRAY_LEVELS


def from_diffusers(folder: Path, scheduler: Any, **network: Any) -> ConditionalUNet:
    """A model that came with a scheduler, as diffusers writes it."""
    save_diffusers(small_unet(conditioning="bias", **network), folder)
    (folder / "scheduler" / "scheduler_config.json").unlink()
    scheduler.save_pretrained(folder / "scheduler")
    return load_diffusers(folder)


def test_the_scheduler_that_a_model_came_with_is_kept(tmp_path: Path) -> None:
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=200, timestep_spacing="linspace", clip_sample=False)
    model = from_diffusers(tmp_path / "theirs", scheduler)
    for name in (None, "DDIMScheduler"):
        save_diffusers(model, tmp_path / f"{name}", scheduler=name)
        assert scheduler_in(tmp_path / f"{name}") == model.diffusion.scheduler
    assert scheduler_in(tmp_path / "None")["timestep_spacing"] == "linspace"


@pytest.mark.parametrize(
    ("own", "asked", "written"),
    [
        (
            diffusers.DDPMScheduler(num_train_timesteps=200, beta_schedule="scaled_linear"),
            "DDIMScheduler",
            {"clip_sample": True, "clip_sample_range": 1.0, "timestep_spacing": "leading", "beta_schedule": "scaled_linear"},
        ),
        (diffusers.DDPMScheduler(clip_sample=False, timestep_spacing="trailing"), "DDIMScheduler", {"clip_sample": False}),
        (
            diffusers.DDPMScheduler(clip_sample_range=2.0),
            "HeunDiscreteScheduler",
            {"clip_sample": True, "clip_sample_range": 2.0},
        ),
        (diffusers.DDIMScheduler(), "DPMSolverMultistepScheduler", {"thresholding": True, "sample_max_value": 1.0}),
        (
            diffusers.DDIMScheduler(thresholding=True, sample_max_value=3.0, dynamic_thresholding_ratio=0.9),
            "DPMSolverMultistepScheduler",
            {"thresholding": True, "sample_max_value": 3.0, "dynamic_thresholding_ratio": 0.9},
        ),
        (diffusers.DPMSolverMultistepScheduler(), "DDPMScheduler", {"clip_sample": False, "timestep_spacing": "linspace"}),
        (
            diffusers.DPMSolverMultistepScheduler(thresholding=True),
            "HeunDiscreteScheduler",
            {"clip_sample": True, "clip_sample_range": 1.0},
        ),
        (
            diffusers.DDPMScheduler(prediction_type="v_prediction", clip_sample=False),
            "EulerDiscreteScheduler",
            {"prediction_type": "v_prediction"},
        ),
    ],
    ids=named,
)
def test_another_scheduler_keeps_the_schedule_and_the_bounds(
    tmp_path: Path, own: Any, asked: str, written: dict[str, Any]
) -> None:
    model = from_diffusers(tmp_path / "theirs", own)
    save_diffusers(model, tmp_path / "saved", scheduler=asked)
    found = scheduler_in(tmp_path / "saved")
    assert found["_class_name"] == asked and written.items() <= found.items()
    built = getattr(diffusers, asked).from_pretrained(tmp_path / "saved" / "scheduler")
    assert torch.equal(built.alphas_cumprod, own.alphas_cumprod)


@pytest.mark.parametrize(
    ("own", "asked", "message"),
    [
        (None, "MagicScheduler", "scheduler is 'MagicScheduler'; schedulers that can be written are DDPMScheduler, DDIMS"),
        (diffusers.DDPMScheduler(), "MagicScheduler", "scheduler is 'MagicScheduler'; schedulers that can be written are"),
        (None, "EDMEulerScheduler", "scheduler is EDMEulerScheduler, which samples networks of EDM only; choose one of DDPM"),
        (diffusers.EDMEulerScheduler(), "DDPMScheduler", "the model came with EDMEulerScheduler, whose networks DDPMScheduler"),
        (diffusers.DDPMScheduler(clip_sample_range=2.0), "DPMSolverMultistepScheduler", "cannot bound x_0 as .* does, by 2"),
        (diffusers.DDPMScheduler(clip_sample_range=2.0), "EulerDiscreteScheduler", "cannot bound x_0 as .* does, by 2"),
        (
            diffusers.DDIMScheduler(thresholding=True, sample_max_value=3.0),
            "EulerDiscreteScheduler",
            "cannot bound x_0 as .* does, by 3",
        ),
        (
            diffusers.DDPMScheduler(variance_type="learned_range"),
            "HeunDiscreteScheduler",
            "diffusers' HeunDiscreteScheduler takes no network that predicts a variance; save with DDPMScheduler",
        ),
    ],
    ids=named,
)
def test_schedulers_that_are_refused(tmp_path: Path, own: Any, asked: str, message: str) -> None:
    model = small_unet(conditioning="bias") if own is None else from_diffusers(tmp_path / "theirs", own, out_channels=6)
    with pytest.raises(ValueError, match=message):
        save_diffusers(model, tmp_path / "saved", scheduler=asked)
    assert not (tmp_path / "saved").exists()


def test_bounds_that_euler_lacks_are_told_of(tmp_path: Path) -> None:
    model = from_diffusers(tmp_path / "theirs", diffusers.DDPMScheduler())
    with pytest.warns(
        UserWarning, match="the model's DDPMScheduler keeps x_0 in .*EulerDiscreteScheduler has no bounds: it is"
    ) as told:
        save_diffusers(model, tmp_path / "saved", scheduler="EulerDiscreteScheduler")
    assert len(told) == 1 and told[0].filename == __file__
    assert scheduler_in(tmp_path / "saved")["_class_name"] == "EulerDiscreteScheduler"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "a", "b"], "class_names has 'a' 2 times; each class needs a name of its own"),
        ([1, "1", 2], "class_names has '1' 2 times"),
        (["a", "b\n", "c"], r"class_names has 'b\\n', with characters that cannot be printed"),
        (["a", "b"], "there are 2 class names for 3 classes"),
    ],
)
def test_class_names_that_no_folder_could_hold(tmp_path: Path, names: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        save_diffusers(small_unet(conditioning="bias"), tmp_path / "saved", class_names=names)
    assert not (tmp_path / "saved").exists()


def test_a_class_for_a_model_whose_scheduler_is_not_followed() -> None:
    """Its betas and its spacing are known; it clamps nothing."""
    theirs = {"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear", "steps_offset": 1, "timestep_spacing": "leading"}
    diffusion = DiffusionConfig(scheduler=theirs)
    assert scheduler_config(diffusion) == theirs
    found = scheduler_config(diffusion, "DDIMScheduler")
    assert {**theirs, "_class_name": "DDIMScheduler", "clip_sample": False}.items() <= found.items()


def test_a_whole_scheduler_config(tmp_path: Path) -> None:
    config = {"_class_name": "DDIMScheduler", "num_train_timesteps": 300, "timestep_spacing": "linspace"}
    save_diffusers(small_unet(conditioning="bias"), tmp_path / "saved", scheduler=config)
    assert scheduler_in(tmp_path / "saved") == config
    with pytest.raises(ValueError, match="timestep_spacing"):
        save_diffusers(small_unet(conditioning="bias"), tmp_path / "x", scheduler={**config, "timestep_spacing": "random"})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_back_byte_for_byte(tmp_path: Path, dtype: torch.dtype) -> None:
    """As long as the weights are what they were: what has been trained since is written in float32."""
    save_diffusers(small_unet(conditioning="bias").to(dtype), tmp_path / "half")
    model = load_diffusers(tmp_path / "half")
    assert model.dtype == torch.float32
    save_diffusers(model, tmp_path / "again")
    files = {name: tmp_path / name / "unet" / "diffusion_pytorch_model.safetensors" for name in ("half", "again", "trained")}
    assert files["half"].read_bytes() == files["again"].read_bytes()
    assert diffusers.UNet2DModel.from_pretrained(tmp_path / "again" / "unet", torch_dtype=dtype).dtype == dtype
    model.conv_in.weight[0, 0, 0, 0] += 1e-7
    save_diffusers(model, tmp_path / "trained")
    written = load_file(files["trained"])
    assert all(value.dtype == torch.float32 for value in written.values())
    assert torch.equal(written["conv_in.weight"], model.conv_in.weight)
