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
from tests.support.pipelines import LABELS, pixels, small_pipeline
from tests.support.tiny_runs import write_run
from tests.tolerances import BF16_MEAN_LEVELS, GRAY_LEVELS


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return small_pipeline()


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


def test_a_flat_list_is_one_label_an_image(pipeline: Pipeline) -> None:
    settings = {"num_inference_steps": 2, "seed": 1}
    assert len(pipeline([0, 0, 1], **settings).images) == 3
    row = pipeline([[0, 0, 1]], **settings)
    assert len(row.images) == 1 and np.array_equal(pixels(row), pixels(pipeline(2, **settings)))
    assert "pipe([0, 0, 1]) is three images" in (Pipeline.__call__.__doc__ or "")


@pytest.fixture(scope="module")
def unconditional() -> Pipeline:
    knows_none = {"class_embedding": "none", "num_classes": 1, "has_null_label": False}
    return Pipeline(small_unet(conditioning="bias", **knows_none).eval())


def test_the_only_call_that_ddpm_pipeline_has(tmp_path: Path, unconditional: Pipeline) -> None:
    """Its arguments, and its images."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    unconditional.save_pretrained(tmp_path / "saved")
    theirs = diffusers.DDPMPipeline.from_pretrained(tmp_path / "saved")
    theirs.set_progress_bar_config(disable=True)
    drawn = [
        pipe(batch_size=4, generator=torch.Generator().manual_seed(3), num_inference_steps=2, output_type="np").images
        for pipe in (theirs, Pipeline.from_pretrained(tmp_path / "saved"), unconditional)
    ]
    assert drawn[0].shape == (4, 8, 8, 3) and drawn[0].std() > 0.1
    for images in drawn[1:]:
        assert np.abs(images - drawn[0]).max() * 255 <= GRAY_LEVELS + 0.5  # theirs are not rounded
    assert len(unconditional(num_inference_steps=2).images) == 1
    labelled = pixels(unconditional([0, 0], num_inference_steps=2, seed=1))
    assert np.array_equal(labelled, pixels(unconditional(batch_size=2, num_inference_steps=2, seed=1)))


def test_the_batch_of_one_generator_is_all_of_a_call(unconditional: Pipeline, pipeline: Pipeline) -> None:
    """As in diffusers, where all images are drawn together; without labels batch_size is how many."""
    labels = [0, 2, 1] * 22
    drawn = pipeline(labels, generator=torch.Generator().manual_seed(3), num_inference_steps=2)
    together = generate(pipeline.unet, labels, steps=2, rng=torch.Generator().manual_seed(3), batch_size=66)
    assert np.array_equal(pixels(drawn), together)
    cut = pipeline(labels, generator=torch.Generator().manual_seed(3), num_inference_steps=2, batch_size=64)
    assert not np.array_equal(pixels(cut), together)
    drawn = unconditional(batch_size=70, generator=torch.Generator().manual_seed(3), num_inference_steps=2)
    together = generate(unconditional.unet, [0] * 70, steps=2, rng=torch.Generator().manual_seed(3), batch_size=70)
    assert np.array_equal(pixels(drawn), together)
    with pytest.raises(ValueError, match="batch size is 0"):
        unconditional(batch_size=0)


def test_devices_and_dtypes(tmp_path: Path) -> None:
    pipeline = Pipeline(small_unet(conditioning="bias").eval(), ["x", "y", "z"])
    assert pipeline.to("cpu", torch.float32) is pipeline and pipeline.dtype == torch.float32
    assert pipeline.to(torch.float64).dtype == torch.float64 and pipeline.to(device="cpu").device == torch.device("cpu")
    pipeline.to(torch.float32).save_pretrained(tmp_path / "saved")
    settings: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 2.0, "seed": 1}
    expected = pixels(pipeline(LABELS, **settings)).astype(int)
    for word, dtype in (("torch_dtype", torch.bfloat16), ("dtype", torch.float16), ("dtype", torch.float64)):
        other = Pipeline.from_pretrained(tmp_path / "saved", **{word: dtype})
        assert other.dtype == dtype
        error = np.abs(pixels(other(LABELS, **settings)) - expected)
        assert error.max() <= GRAY_LEVELS if dtype == torch.float64 else error.mean() <= BF16_MEAN_LEVELS
    with pytest.raises(ValueError, match="has no checkpoints"):
        Pipeline.from_pretrained(tmp_path / "saved", step=3)
    with pytest.raises(ValueError, match="torch_dtype and dtype are both given"):
        Pipeline.from_pretrained(tmp_path / "saved", dtype=torch.float32, torch_dtype=torch.float32)


def test_an_output_is_read_as_diffusers_outputs_are(pipeline: Pipeline) -> None:
    output = pipeline(LABELS, num_inference_steps=2, seed=1, output_type="numpy")
    assert output[0] is output["images"] is output.images is output.to_tuple()[0] and output[:1] == (output.images,)
    assert isinstance(output.images, np.ndarray) and len(tuple(output)) == 1
    with pytest.raises(KeyError, match="nsfw"):
        output["nsfw"]
    with pytest.raises(ValueError, match="a grid is of PIL images, and these are ndarray; draw with output_type='pil'"):
        output.grid()


def test_parts(pipeline: Pipeline) -> None:
    assert pipeline.components["unet"] is pipeline.unet
    assert pipeline.components["scheduler"] == pipeline.scheduler
    assert pipeline.scheduler.config["_class_name"] == "DDPMScheduler"
    assert pipeline.config == {"unet": ("fastcond", "ConditionalUNet"), "scheduler": ("diffusers", "DDPMScheduler")}
    assert Pipeline(pipeline.unet, sampler="ddim").config["scheduler"] == ("diffusers", "DDIMScheduler")


def test_keywords_that_from_pretrained_does_not_have(tmp_path: Path, pipeline: Pipeline) -> None:
    pipeline.save_pretrained(tmp_path / "folder")
    write_run(tmp_path / "run")
    for source in (tmp_path / "folder", tmp_path / "run"):
        for unknown in ({"use_safetensors": True}, {"nonsense": None}):
            with pytest.raises(
                TypeError, match=f"{next(iter(unknown))}: no such argument; beside device and dtype there are step"
            ):
                Pipeline.from_pretrained(source, **unknown)
    with pytest.raises(ValueError, match="is of a model of diffusers"):
        Pipeline.from_pretrained(tmp_path / "run", variant="fp16")
    assert Pipeline.from_pretrained(tmp_path / "folder", null_label=True, timesteps=None).unet.config.has_null_label


def test_labels_of_other_kinds(pipeline: Pipeline) -> None:
    settings = {"num_inference_steps": 2, "seed": 1}
    expected = pixels(pipeline([1], **settings))
    one = [np.int64(1), np.array(1), torch.tensor(1), [torch.tensor(1)], np.array(["y"]), np.array("y")]
    row = torch.tensor([[0.0, 1, 0]])
    one += [row.bfloat16(), row.clone().requires_grad_(), [row[0]], [row[0].numpy()], [row[0].half().requires_grad_()]]
    for labels in one:
        assert np.array_equal(pixels(pipeline(labels, **settings)), expected), labels
    vectors = Pipeline(small_unet(conditioning="label_attention").eval())
    soft = torch.tensor([[0.5, 0.25, 0.0]])
    expected = pixels(vectors(soft, **settings))
    for labels in (soft.bfloat16(), soft.clone().requires_grad_(), soft.numpy(), list(soft)):
        assert np.array_equal(pixels(vectors(labels, **settings)), expected)


def test_a_progress_bar_where_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    pipeline, rows = Pipeline(small_unet(conditioning="bias").eval()), []
    settings: dict[str, Any] = {"num_inference_steps": 3, "seed": 1, "batch_size": 2}
    expected = pixels(pipeline(LABELS, **settings))
    pipeline.set_progress_bar_config(disable=True)
    pipeline(LABELS, **settings)
    assert capsys.readouterr().err == ""
    pipeline.set_progress_bar_config(desc="drawing")
    drawn = pipeline(LABELS, **settings, on_step=lambda row, first, x_0: rows.append((row, first)))
    assert np.array_equal(pixels(drawn), expected)
    assert rows == [(row, first) for first in (0, 2) for row in range(3)]
    assert "drawing: 100%" in (shown := capsys.readouterr().err) and "6/6" in shown


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
        ({"class_labels": [0], "generator": torch.Generator(), "rng": "philox"}, "generator and rng are both given"),
        (
            {"class_labels": [0], "generator": 3},
            "generator is 3; give a torch.Generator, or a list .*; a number is given as seed",
        ),
        ({"class_labels": [0], "generator": [3]}, r"generator is \[3\]; give a torch.Generator"),
        ({"class_labels": [0], "steps": 3, "num_inference_steps": 3}, "num_inference_steps and steps are both given"),
        ({"class_labels": [0], "guidance": 3, "guidance_scale": 1.0}, "guidance_scale and guidance are both given"),
        ({"class_labels": [0], "guide": "x"}, "guide is 'x'; give a network, such as fastcond.load_diffusers"),
        ({"class_labels": None}, r"class_labels is missing; give labels or names \(x, y, z\), or a list of them"),
        (
            {"class_labels": [[1, 0, 0], [1]]},
            "class_labels mixes rows of 1 numbers, rows of 3 numbers; give single labels, or rows",
        ),
        ({"class_labels": [1, [1, 0, 0]]}, "class_labels mixes single labels, rows of 3 numbers"),
        ({"class_labels": [np.array([1, 0, 0]), 1]}, "class_labels mixes single labels, rows of 3 numbers"),
        ({"class_labels": [torch.eye(3)[0], torch.eye(2)[0]]}, "class_labels mixes rows of 2 numbers, rows of 3 numbers"),
        ({"class_labels": ["x", np.eye(3)[0]]}, "class_labels mixes single labels, rows of 3 numbers"),
    ],
)
def test_refusals(pipeline: Pipeline, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline(**arguments)
    with pytest.raises(TypeError, match="negative_prompt: no such argument; images are asked for by class_labels"):
        pipeline([0], negative_prompt="ugly")
    with pytest.raises(TypeError, match="labels, model: no such argument"):
        pipeline([0], labels=[1], model=pipeline.unet)
    with pytest.raises(ValueError, match="there are 2 class names for 3 classes"):
        Pipeline(pipeline.unet, ["a", "b"])


def test_channels_that_a_pil_image_cannot_have() -> None:
    pipeline = Pipeline(small_unet(conditioning="bias", in_channels=5, out_channels=5).eval())
    with pytest.raises(ValueError, match="the network draws 5 channels, which a PIL image cannot have; use output_type='np'"):
        pipeline([0], num_inference_steps=2)
    assert pipeline([0], num_inference_steps=2, output_type="np").images.shape == (1, 8, 8, 5)


def test_aliases_alone_are_taken(pipeline: Pipeline) -> None:
    words = pixels(pipeline(LABELS, num_inference_steps=3, guidance_scale=2.0, seed=1))
    assert np.array_equal(pixels(pipeline(LABELS, steps=3, guidance=2.0, seed=1)), words)


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
