"""A saved folder in diffusers, run by its own pipeline.py: fastcond's images, with labels and guidance."""

from __future__ import annotations

import ast
import copy
import json
import re
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


def test_it_saves_from_another_folder_than_it_loaded_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it needs is read when it loads: a relative path is another file's, or none, after a change of folder."""
    saved(tmp_path / "la", conditioning="label_attention")
    monkeypatch.chdir(tmp_path)
    pipeline = pipeline_of(Path("la"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    pipeline.save_pretrained("out")
    written = tmp_path / "elsewhere" / "out"
    for name in ("class_labels.json", "pipeline.py"):
        assert (written / name).read_text() == (tmp_path / "la" / name).read_text()
    before, after = (
        safetensors.torch.load_file(folder / "unet" / "emb_net.safetensors") for folder in (tmp_path / "la", written)
    )
    assert before.keys() == after.keys() and all(torch.equal(after[name], value) for name, value in before.items())
    assert type(load_diffusers(written)).__name__ == "ConditionalUNet"


def test_a_network_made_in_memory_takes_no_labels_of_where_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "b", conditioning="bias")
    saved(tmp_path / "la", conditioning="label_attention")
    (tmp_path / "run").mkdir()
    (tmp_path / "class_labels.json").write_text('{"label2id": {"stranger": 0}, "null_class_id": 3}')
    monkeypatch.chdir(tmp_path / "run")
    for name in ("b", "la"):
        pipeline = pipeline_of(tmp_path / name)
        config = {key: value for key, value in pipeline.unet.config.items() if not key.startswith("_")}
        made = {"unet": type(pipeline.unet)(**config), "scheduler": pipeline.scheduler}
        if name == "la":
            with pytest.raises(
                ValueError, match="needs the MLP that makes its token of a label, and it was loaded from no folder"
            ):
                type(pipeline)(**made)
            continue
        other = type(pipeline)(**made)
        assert other.label2id == {} and other.null_label is None
        other.save_pretrained(tmp_path / "out")
        assert not (tmp_path / "out" / "class_labels.json").exists()
        same = type(pipeline)(unet=copy.deepcopy(pipeline.unet), scheduler=pipeline.scheduler)
        assert same.label2id == pipeline.label2id == {"x": 0, "y": 1, "z": 2}


@pytest.mark.parametrize("conditioning", ["bias", "label_attention"])
def test_what_diffusers_saves_again_loads_as_what_fastcond_wrote(tmp_path: Path, conditioning: str) -> None:
    saved(tmp_path / "saved", conditioning=conditioning)
    pipeline_of(tmp_path / "saved").save_pretrained(tmp_path / "again")
    assert type(diffusers.DiffusionPipeline.from_pretrained(tmp_path / "again")).__name__ == "DDPMPipeline"
    first, second = (json.loads((tmp_path / name / "model_index.json").read_text()) for name in ("saved", "again"))
    assert {key: second[key] for key in first} == first


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


@pytest.mark.parametrize(
    ("conditioning", "labels", "message"),
    [
        ("both", [7], "class_labels holds 7; the labels are 0 to 3"),
        ("both", [-1], "class_labels holds -1; the labels are 0 to 3"),
        ("both", [], "class_labels is empty; give at least one label"),
        ("both", torch.empty(0, dtype=torch.int64), "class_labels is empty; give at least one label"),
        ("both", [None], "class_labels holds None; a label is a whole number or a name, or a row of numbers"),
        ("both", [[1.0, 0, 0], [1.0]], "class_labels mixes single labels and rows, or rows of several widths"),
        ("both", [1, [1.0, 0, 0]], "class_labels mixes single labels and rows, or rows of several widths"),
        ("both", torch.ones(1, 1, 3), "class_labels is torch.float32 [1, 1, 3]; give one label an image, or a row of numbers"),
        ("bias", [0.5], "class_labels holds 0.5; a label is a whole number or a name"),
        ("label_attention", [0.5], "class_labels holds 0.5; give whole numbers, names or rows of 3 numbers"),
        ("label_attention", [[1.0, 0]], "class_labels has shape [1, 2]; rows of 3 finite numbers are needed"),
        ("label_attention", [[float("nan"), 0, 0]], "class_labels has shape [1, 3]; rows of 3 finite numbers are needed"),
        ("bias", [[1.0, 0]], "class_labels has shape [1, 2]; this network takes numbers or names, one an image"),
        ("bias", torch.eye(3), "class_labels has shape [3, 3]; this network takes numbers or names, one an image"),
    ],
)
def test_labels_that_it_refuses(pipelines: dict[str, Any], conditioning: str, labels: Any, message: str) -> None:
    for name, pipeline in pipelines.items():
        if conditioning in (name, "both"):
            with pytest.raises(ValueError, match=re.escape(message)):
                pipeline(class_labels=labels, num_inference_steps=2)


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("pipelines")
    for name in ("bias", "label_attention"):
        saved(folder / name, conditioning=name)
    return {name: pipeline_of(folder / name) for name in ("bias", "label_attention")}


def test_numbers_of_other_kinds(pipelines: dict[str, Any]) -> None:
    def drawn(pipeline: Any, labels: Any) -> np.ndarray:
        generator = torch.Generator().manual_seed(1)
        return pipeline(class_labels=labels, num_inference_steps=2, generator=generator, output_type="np").images

    for pipeline in pipelines.values():
        expected = drawn(pipeline, [1])
        for labels in (np.int64(1), np.array(1), torch.tensor(1), np.array([1]), [torch.tensor(1)], np.array(["y"]), ("y",)):
            assert np.array_equal(drawn(pipeline, labels), expected), labels
    expected = drawn(pipelines["label_attention"], [0, 2])
    rows = torch.eye(3)[[0, 2]]
    for labels in (rows.bfloat16(), rows.clone().requires_grad_(), list(rows), list(rows.numpy()), rows.long()):
        assert np.array_equal(drawn(pipelines["label_attention"], labels), expected), labels


def test_labels_of_a_network_without_a_table(tmp_path: Path) -> None:
    """Vectors of an embedding's width, any whole number, or none."""
    made = {
        name: {"class_embedding": name, "num_classes": 1, "has_null_label": False} for name in ("identity", "timestep", "none")
    }
    models = {name: saved(tmp_path / name, conditioning="bias", **network) for name, network in made.items()}
    vectors = torch.randn(2, models["identity"].config.embedding_dim, generator=torch.Generator().manual_seed(0))
    for name, labels in (("identity", vectors), ("timestep", [3, 700])):
        ours = generate(models[name], labels, steps=3, rng="torch", seed=2)
        assert_same_images(tmp_path / name, ours, seed=2, class_labels=labels, num_inference_steps=3)
    width = vectors.shape[1]
    refused = [
        ("identity", [1], f"class_labels holds 1; give rows of {width} numbers"),
        ("identity", [[1.0, 2.0]], f"class_labels has shape [1, 2]; rows of {width} finite numbers are needed"),
        ("timestep", [-1], "class_labels holds -1; the labels start at 0"),
        ("none", [0], "the network knows no labels; leave out class_labels, and give batch_size"),
    ]
    for name, labels, message in refused:
        with pytest.raises(ValueError, match=re.escape(message)):
            pipeline_of(tmp_path / name)(class_labels=labels)


def test_guidance_of_each_image(pipelines: dict[str, Any]) -> None:
    for pipeline in pipelines.values():

        def drawn(scales: Any, pipeline: Any = pipeline) -> np.ndarray:
            generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
            settings = {"num_inference_steps": 3, "generator": generators, "output_type": "np"}
            return pipeline([0, 2], guidance_scale=scales, **settings).images

        plain, guided = drawn(1.0), drawn(3.0)
        assert np.abs(plain - guided).max(axis=(1, 2, 3)).min() > 0.02
        for scales in ([1.0, 3.0], np.array([1.0, 3.0]), torch.tensor([1, 3])):
            mixed = drawn(scales)
            assert np.abs(mixed[0] - plain[0]).max() * 255 <= GRAY_LEVELS
            assert np.abs(mixed[1] - guided[1]).max() * 255 <= GRAY_LEVELS
        with pytest.raises(ValueError, match=r"guidance_scale has shape \[3\]; give one number or 2, one an image"):
            drawn([1.0, 2.0, 3.0])
        with pytest.raises(ValueError, match="output_type is 'latent'; choose pil, np or pt"):
            pipeline([0], output_type="latent")


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
