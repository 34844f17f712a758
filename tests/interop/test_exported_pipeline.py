"""A saved folder in diffusers, run by its own pipeline.py: fastcond's images, with labels and guidance."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from fastcond.config import DiffusionConfig
from fastcond.engine import generate
from fastcond.interop import load_diffusers, save_diffusers
from fastcond.nn import ConditionalUNet
from tests.support.exported import drawn_in_diffusers, pipeline_of
from tests.support.networks import small_unet
from tests.tolerances import GRAY_LEVELS

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

NAMES = ["x", "y", "z"]
LABELS = [0, 2, 1, 3, 0]


def saved(
    folder: Path, diffusion: DiffusionConfig | None = None, scheduler: str | None = None, **network: Any
) -> ConditionalUNet:
    model = small_unet(diffusion, **network).eval()
    save_diffusers(model, folder, class_names=NAMES[: model.config.num_classes], scheduler=scheduler)
    return model


def assert_same_images(folder: Path, expected: np.ndarray, **call: Any) -> None:
    theirs = drawn_in_diffusers(folder, **call)
    assert theirs.shape == expected.shape and theirs.std() > 10
    assert np.abs(theirs - expected.astype(int)).max() <= GRAY_LEVELS


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("conditioning", ["bias", "scale_shift", "label_attention"])
def test_the_same_images(tmp_path: Path, conditioning: str, guidance: float) -> None:
    model = saved(tmp_path / "saved", conditioning=conditioning, image_size=(8, 16))
    ours = generate(model, LABELS, guidance=guidance, steps=5, rng="torch", seed=3)
    call = {"num_inference_steps": 5, "seed": 3, "guidance_scale": guidance}
    assert_same_images(tmp_path / "saved", ours, class_labels=LABELS, **call)
    other = drawn_in_diffusers(tmp_path / "saved", class_labels=[1] * 5, **call)
    assert np.abs(other - ours).max() > GRAY_LEVELS, "the labels have an effect"


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "DPMSolverMultistepScheduler", "HeunDiscreteScheduler"])
def test_with_other_schedulers(tmp_path: Path, scheduler: str) -> None:
    """Those that take a generator and those that take none, those that scale what the network sees and those that do not."""
    diffusion = DiffusionConfig(prediction="v")
    model = saved(tmp_path / "saved", diffusion, scheduler, conditioning="bias")
    sampler = {"DDIMScheduler": "ddim", "DPMSolverMultistepScheduler": "dpmpp2m", "HeunDiscreteScheduler": "heun"}[scheduler]
    ours = generate(model, LABELS, guidance=1.5, sampler=sampler, steps=20, rng="torch")
    assert_same_images(tmp_path / "saved", ours, class_labels=LABELS, num_inference_steps=20, guidance_scale=1.5)


@pytest.mark.parametrize(
    "scheduler",
    [
        {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"},
        {"_class_name": "HeunDiscreteScheduler", "timestep_spacing": "leading"},
        {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 20.0},
    ],
    ids=["euler_leading", "heun_leading", "euler_karras"],
)
def test_noise_of_the_run_s_own_scale(tmp_path: Path, scheduler: dict[str, Any]) -> None:
    """In the first call too, where a scheduler of these has not been told its timesteps before."""
    model = small_unet(DiffusionConfig(prediction="v"), conditioning="bias").eval()
    save_diffusers(model, tmp_path / "saved", scheduler={**scheduler, "prediction_type": "v_prediction"})
    ours = generate(load_diffusers(tmp_path / "saved"), LABELS, guidance=1.5, sampler="scheduler", steps=5, rng="torch", seed=3)
    pipeline = pipeline_of(tmp_path / "saved")
    for _ in range(2):
        generator = torch.Generator().manual_seed(3)
        theirs = pipeline(LABELS, guidance_scale=1.5, num_inference_steps=5, generator=generator, output_type="np").images
        assert theirs.std() > 0.05 and np.abs(np.round(theirs * 255) - ours).max() <= GRAY_LEVELS


def test_a_network_that_predicts_a_variance(tmp_path: Path) -> None:
    diffusion = DiffusionConfig(prediction="v", variance="learned_range")
    model = saved(tmp_path / "saved", diffusion, conditioning="bias", out_channels=6)
    # diffusers' DDPM adds noise to the image itself, as "scheduler" does and our ddpm does not.
    again = load_diffusers(tmp_path / "saved")
    ours = generate(again, LABELS, guidance=2.0, sampler="scheduler", steps=5, rng="torch")
    assert_same_images(tmp_path / "saved", ours, class_labels=LABELS, num_inference_steps=5, guidance_scale=2.0)
    assert model.diffusion.variance == "learned_range"


def test_labels_by_index_name_row_and_tensor(tmp_path: Path) -> None:
    saved(tmp_path / "saved", conditioning="label_attention")
    pipeline = pipeline_of(tmp_path / "saved")

    def drawn(labels: Any) -> np.ndarray:
        generator = torch.Generator().manual_seed(1)
        return pipeline(class_labels=labels, num_inference_steps=2, generator=generator, output_type="np").images

    expected = drawn([0, 2])
    for labels in (["x", "z"], ["x", 2], torch.tensor([0, 2]), [[1.0, 0, 0], [0, 0, 1]], torch.eye(3)[[0, 2]]):
        assert np.allclose(drawn(labels), expected, atol=1 / 255), labels
    assert np.allclose(drawn([3]), drawn([[0.0, 0, 0]])), "zeros are the null label"
    assert not np.allclose(drawn([[0.5, 0, 0.5]])[0], expected[0], atol=1 / 255)
    assert drawn("y").shape == drawn(1).shape == (1, 8, 8, 3)
    images = pipeline(class_labels=["y"], num_inference_steps=2).images
    assert images[0].size == (8, 8) and images[0].mode == "RGB"


@pytest.mark.parametrize("conditioning", ["bias", "label_attention"])
def test_diffusers_saves_it_again(tmp_path: Path, conditioning: str) -> None:
    """With the labels' names, the null label, the label MLP and the code, also into the folder itself."""
    saved(tmp_path / "saved", conditioning=conditioning)
    call: dict[str, Any] = {"class_labels": ["z", "x"], "guidance_scale": 2.0, "num_inference_steps": 2}
    expected = drawn_in_diffusers(tmp_path / "saved", **call)
    pipeline = pipeline_of(tmp_path / "saved")
    pipeline.save_pretrained(tmp_path / "again")
    pipeline.save_pretrained(tmp_path / "saved")
    for name in ("again", "saved"):
        assert np.array_equal(drawn_in_diffusers(tmp_path / name, **call), expected)
        ours = generate(load_diffusers(tmp_path / name), [2, 0], guidance=2.0, steps=2, rng="torch")
        assert np.abs(ours - expected).max() <= GRAY_LEVELS


def test_a_label_mlp_whose_layers_stand_elsewhere(tmp_path: Path) -> None:
    """With a dropout between them, as one of the blog's two has."""
    saved(tmp_path / "saved", conditioning="label_attention")
    call: dict[str, Any] = {"class_labels": [2, 0], "guidance_scale": 2.0, "num_inference_steps": 2}
    expected = drawn_in_diffusers(tmp_path / "saved", **call)
    path = tmp_path / "saved" / "unet" / "emb_net.safetensors"
    weights = safetensors.torch.load_file(path)
    safetensors.torch.save_file({name.replace("2.", "10.", 1): value for name, value in weights.items()}, path)
    assert np.array_equal(drawn_in_diffusers(tmp_path / "saved", **call), expected)


def test_what_it_refuses(tmp_path: Path) -> None:
    saved(tmp_path / "saved", conditioning="bias")
    pipeline = pipeline_of(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"class_labels is missing; give labels or names \(x, y, z\)"):
        pipeline(num_inference_steps=2)
    with pytest.raises(ValueError, match="there is no class 'nobody'; the names are x, y, z"):
        pipeline(class_labels=["nobody"], num_inference_steps=2)
    saved(tmp_path / "other", conditioning="bias", has_null_label=False)
    with pytest.raises(ValueError, match=r"guidance_scale is 2.0; the network has no null label"):
        pipeline_of(tmp_path / "other")(class_labels=[0], guidance_scale=2.0)


def test_ddpm_pipeline_goes_on_loading_the_folder(tmp_path: Path) -> None:
    """And of a network that knows no labels draws what the folder's own does."""
    model = saved(tmp_path / "saved", conditioning="bias", class_embedding="none", num_classes=1, has_null_label=False)
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path / "saved")
    pipeline.set_progress_bar_config(disable=True)
    call = {"batch_size": 3, "num_inference_steps": 4}
    theirs = pipeline(generator=torch.Generator().manual_seed(2), output_type="np", **call).images
    ours = generate(model, [0, 0, 0], steps=4, rng="torch", seed=2)
    assert np.abs(np.round(theirs * 255) - ours).max() <= GRAY_LEVELS
    assert_same_images(tmp_path / "saved", ours, seed=2, **call)


def test_code_of_a_folder_is_run_only_where_that_is_asked_for(tmp_path: Path) -> None:
    saved(tmp_path / "saved", conditioning="bias")
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        diffusers.DiffusionPipeline.from_pretrained(tmp_path / "saved", custom_pipeline="pipeline")
    assert type(diffusers.DiffusionPipeline.from_pretrained(tmp_path / "saved")).__name__ == "DDPMPipeline"


def test_what_is_shipped_needs_diffusers_and_torch_alone(tmp_path: Path) -> None:
    saved(tmp_path / "saved", conditioning="bias")
    nodes = list(ast.walk(ast.parse((tmp_path / "saved" / "pipeline.py").read_text(encoding="utf-8"))))
    imported = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    imported += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    assert {name.split(".")[0] for name in imported} - sys.stdlib_module_names == {"diffusers", "safetensors", "torch"}
