"""Pipeline: a diffusers pipeline's words, and its images where it is given a generator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fastcond import Pipeline, generate
from fastcond.interop import load_diffusers, save_diffusers
from tests.support.networks import perturb, small_unet

LABELS = [0, 2, 1]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(small_unet(conditioning="bias").eval(), ["x", "y", "z"])


def pixels(output: Any) -> np.ndarray:
    return np.stack([np.asarray(image) for image in output.images])


def test_a_call_is_generate_s(pipeline: Pipeline) -> None:
    output = pipeline(LABELS, guidance_scale=2.5, num_inference_steps=3, seed=7)
    assert all(isinstance(image, Image.Image) and image.size == (8, 8) for image in output.images)
    assert np.array_equal(pixels(output), generate(pipeline.unet, LABELS, guidance=2.5, steps=3, seed=7))


def test_labels_by_index_name_or_one_hot_row(pipeline: Pipeline) -> None:
    settings = {"num_inference_steps": 2, "seed": 1}
    expected = pixels(pipeline(LABELS, **settings))
    one_hot = np.eye(3)[LABELS]
    for labels in (["x", "z", "y"], ["x", 2, 1], one_hot, one_hot.tolist(), torch.from_numpy(one_hot), torch.tensor(LABELS)):
        assert np.array_equal(pixels(pipeline(labels, **settings)), expected)
    assert np.array_equal(pixels(pipeline("x", **settings)), expected[:1])
    assert np.array_equal(pixels(pipeline(0, **settings)), expected[:1])


def test_output_types(pipeline: Pipeline) -> None:
    settings = {"num_inference_steps": 2, "seed": 1}
    expected = pixels(pipeline(LABELS, **settings)) / 255
    floats = pipeline(LABELS, output_type="np", **settings).images
    assert floats.dtype == np.float32 and floats.shape == (3, 8, 8, 3) and np.allclose(floats, expected)
    tensor = pipeline(LABELS, output_type="pt", return_dict=False, **settings)[0]
    assert tensor.shape == (3, 3, 8, 8) and torch.equal(tensor.permute(0, 2, 3, 1), torch.from_numpy(floats))
    assert pipeline(LABELS, **settings).grid(columns=2).mode == "RGB"


def test_the_global_generator_repeats_a_call(pipeline: Pipeline) -> None:
    def drawn() -> np.ndarray:
        return pixels(pipeline(LABELS, num_inference_steps=2))

    torch.manual_seed(5)
    first, second = drawn(), drawn()
    assert not np.array_equal(first, second)
    torch.manual_seed(5)
    assert np.array_equal(drawn(), first)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_labels": ["x", "nobody"]}, "there is no class 'nobody'; the names are x, y, z"),
        ({"class_labels": [[0.5, 0.5, 0]]}, "this network knows classes by a table"),
        ({"class_labels": [[1, 0]]}, r"class_labels is int64 \[1, 2\]"),
        ({"class_labels": [5]}, "labels holds 5; values lie in 0 to 3"),
        ({"class_labels": [0], "output_type": "jpeg"}, "output_type is 'jpeg'; choose pil, np or pt"),
        ({"class_labels": [0], "generator": torch.Generator(), "seed": 1}, "generator and seed are both given"),
    ],
)
def test_refusals(pipeline: Pipeline, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline(**arguments)
    with pytest.raises(TypeError, match="negative_prompt: no such argument; images are asked for by class_labels"):
        pipeline([0], negative_prompt="ugly")
    with pytest.raises(ValueError, match="there are 2 class names for 3 classes"):
        Pipeline(pipeline.unet, ["a", "b"])


def test_vectors_for_labels() -> None:
    """Soft and several at once; zeros are the null label."""
    pipeline = Pipeline(small_unet(conditioning="label_attention").eval())
    settings = {"num_inference_steps": 2, "seed": 1, "guidance_scale": 2.0}
    hard = pixels(pipeline([0, 1, 3], **settings))
    assert np.array_equal(pixels(pipeline([[1.0, 0, 0], [0, 1, 0], [0, 0, 0]], **settings)), hard)
    soft = pixels(pipeline([[0.5, 0.5, 0], [0, 1, 1], [0, 0, 0]], **settings)).astype(int)
    assert not np.array_equal(soft[0], hard[0]) and not np.array_equal(soft[1], hard[1])
    assert np.abs(soft[2] - hard[2]).max() <= 1
    with pytest.raises(ValueError, match="the network takes vectors of 3 numbers"):
        pipeline([[0.5, 0.5]], **settings)
    with pytest.raises(ValueError, match="not finite"):
        pipeline([[0.5, float("nan"), 0]], **settings)


@pytest.mark.parametrize("name", ["conditional_unet", "better_conditional_unet"])
def test_the_blog_s_twenty_images(shared_data: Path, tmp_path: Path, name: str) -> None:
    """Its network with random weights, its own label MLP, and its pipeline written out with diffusers."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    blog, steps = shared_data / "blog", 8
    unet = diffusers.UNet2DConditionModel.from_config(json.loads((blog / f"{name}.config.json").read_text())).eval()
    perturb(unet, size=0.02)
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=200)
    state = torch.load(blog / ("better_emb_net.pth" if name.startswith("better") else "emb_net.pth"), "cpu", weights_only=True)
    layers = sorted({int(key.split(".")[0]) for key in state})
    mlp = nn.Sequential(*(nn.Linear(*state[f"{layer}.weight"].T.shape) for layer in layers)).eval()
    mlp.load_state_dict(
        {f"{i}.{kind}": state[f"{layer}.{kind}"] for i, layer in enumerate(layers) for kind in ("weight", "bias")}
    )
    labels = torch.eye(5).repeat_interleave(4, dim=0)

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 3, 16, 16, generator=generator)
    scheduler.set_timesteps(steps)
    with torch.no_grad():
        token = mlp[1](nn.functional.gelu(mlp[0](labels)))[:, None]
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t, encoder_hidden_states=token).sample, t, x, generator=generator).prev_sample
    expected = ((x / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy()

    unet.save_pretrained(tmp_path / "unet")
    scheduler.save_pretrained(tmp_path / "scheduler")
    (tmp_path / "model_index.json").write_text("{}")
    torch.save(state, tmp_path / "emb_net.pth")
    pipeline = Pipeline.from_pretrained(tmp_path)
    drawn = pipeline(labels, num_inference_steps=steps, generator=torch.Generator().manual_seed(0))
    assert np.abs(pixels(drawn) - expected).max() <= 1
    assert drawn.grid(columns=4).size[0] < drawn.grid(columns=5).size[0]


def test_a_pipeline_of_a_saved_one(tmp_path: Path, pipeline: Pipeline) -> None:
    save_diffusers(pipeline.unet, tmp_path / "p", class_names=pipeline.class_names)
    again = Pipeline.from_pretrained(tmp_path / "p")
    assert again.class_names == ("x", "y", "z") and again.sampler == "scheduler"
    assert load_diffusers(tmp_path / "p").config == again.unet.config
    assert again.to("cpu").device == torch.device("cpu")
    assert again(["x"], num_inference_steps=2, guidance_scale=2.0, seed=1).images[0].size == (8, 8)
