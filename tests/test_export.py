"""python -m fastcond.export, and the loop of docs/export.md in a process that knows nothing of fastcond."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastcond import export, generate, load_run
from fastcond.command_line import run as run_command
from fastcond.interop import load_diffusers
from fastcond.ops import philox_normal
from fastcond.ops.philox import INITIAL_NOISE, STEP_NOISE
from tests.support.command_lines import REPOSITORY, assert_one_line
from tests.support.diffusers_twin import diffusers_twin
from tests.support.label_networks import small_told
from tests.support.networks import small_config
from tests.support.tiny_runs import write_run
from tests.tolerances import GRAY_LEVELS

SEED = 7


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run")


def export_here(*arguments: object) -> int:
    return run_command(export.main, export.build_parser(), [str(argument) for argument in arguments])


def wanted(source: Path) -> np.ndarray:
    """What the loop's images are to be."""
    return generate(load_run(source).model, [0, 1, 1], guidance=2.5, sampler="ddim", steps=4, seed=SEED).astype(int)


def initial_noise() -> torch.Tensor:
    return philox_normal(torch.tensor([[SEED, 0], [SEED, 1], [SEED, 2]]), (1, 8, 8))


def test_the_loop_of_the_docs_draws_our_images_without_fastcond(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export_here(source, tmp_path / "step.pt2", "--sampler", "ddim", "--steps", "4") == 0
    said = capsys.readouterr().out
    assert "checked: differs from the network by" in said and "(x, row, label, guidance) -> (x_next, x_0), 4 rows" in said
    torch.save(initial_noise(), tmp_path / "noise.pt")
    loop = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "export.md").read_text(encoding="utf-8"), re.S)[0]
    drawn = "noise = torch.randn(shape)\n"
    assert drawn in loop
    # A module that is None in sys.modules cannot be imported.
    script = "import sys\nsys.modules['fastcond'] = None\n" + loop.replace(drawn, "noise = torch.load('noise.pt')\n")
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert np.abs(np.load(tmp_path / "images.npy").astype(int) - wanted(source)).max() <= GRAY_LEVELS

    files = {"fastcond.json": ""}
    program = torch.export.load(tmp_path / "step.pt2", extra_files=files)
    operations = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "aten.native_group_norm.default" in operations
    assert all(name.startswith(("aten.", "<built-in function")) for name in operations), operations
    described = json.loads(files["fastcond.json"])
    assert described["class_names"] == ["dark", "bright"] and described["null_label"] == 2 and described["batch_size"] is None
    assert described["inputs"] == ["x", "row", "label", "guidance"] and described["sampler"] == "ddim"
    torch.testing.assert_close(program.state_dict["coefficients"], torch.tensor(described["coefficients"]))


def test_onnx(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    assert export_here(source, tmp_path / "step.onnx", "--sampler", "ddim", "--steps", "4", "--batch-size", "3") == 0
    session = onnxruntime.InferenceSession(tmp_path / "step.onnx", providers=["CPUExecutionProvider"])
    run = json.loads(session.get_modelmeta().custom_metadata_map["fastcond.json"])
    values = {"x": initial_noise().numpy(), "label": np.array([0, 1, 1]), "guidance": np.full(3, 2.5, np.float32)}
    for row in range(run["rows"]):
        values["row"] = np.array([row])
        values["x"], _ = session.run(None, {name: values[name] for name in run["inputs"]})
    images = np.round(np.clip(values["x"] / 2 + 0.5, 0, 1) * 255).transpose(0, 2, 3, 1)
    assert run["batch_size"] == 3 and np.abs(images - wanted(source)).max() <= GRAY_LEVELS
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match="Got: 2 Expected: 3"):
        loop(tmp_path / "step.onnx", [0, 1])


def loop(path: Path, labels: list[int], guided: bool = True) -> np.ndarray:
    """The images of a file's step, run by PyTorch's or ONNX's own loader, from the noise that `generate` has. int64."""
    if path.suffix == ".onnx":
        onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        run = json.loads(session.get_modelmeta().custom_metadata_map["fastcond.json"])

        def step(given: dict[str, torch.Tensor]) -> list[torch.Tensor]:
            return [torch.from_numpy(y) for y in session.run(None, {name: value.numpy() for name, value in given.items()})]
    else:
        files = {"fastcond.json": ""}
        program = torch.export.load(path, extra_files=files).module()
        run = json.loads(files["fastcond.json"])

        def step(given: dict[str, torch.Tensor]) -> list[torch.Tensor]:
            return list(program(**given))

    seeds = torch.tensor([[SEED, index] for index in range(len(labels))])
    shape = tuple(run["image_shape"])
    values = {"x": run["initial_scale"] * philox_normal(seeds, shape, stream=INITIAL_NOISE), "label": torch.tensor(labels)}
    values |= {"history": torch.zeros(len(labels), *shape), "guidance": torch.full((len(labels),), 2.5)}
    assert ("guidance" in run["inputs"]) == guided
    for row in range(run["rows"]):
        values |= {"row": torch.tensor([row]), "noise": philox_normal(seeds, shape, step=row, stream=STEP_NOISE)}
        values["x"], values["history"] = step({name: values[name] for name in run["inputs"]})
    return ((values["x"] / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1).to(torch.int64).numpy()


@pytest.mark.parametrize(("sampler", "has"), [("ddpm", "noise"), ("dpmpp2m", "history")])
def test_onnx_of_any_batch_with_noise_or_history(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], sampler: str, has: str
) -> None:
    """Made with another number of images than any that it is run with."""
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    assert export_here(source, tmp_path / "step.onnx", "--sampler", sampler, "--steps", "4") == 0
    assert f"(x, row, label, guidance, {has}) -> (x_next, x_0)" in capsys.readouterr().out
    model = load_run(source).model
    for labels in ([1], [0, 1], [0, 1, 1, 2, 0, 1, 0]):
        expected = generate(model, labels, guidance=2.5, sampler=sampler, steps=4, seed=SEED).astype(int)
        assert np.abs(loop(tmp_path / "step.onnx", labels) - expected).max() <= GRAY_LEVELS


@pytest.mark.parametrize(("kind", "suffix"), [("UNet2DModel", ".pt2"), ("UNet2DConditionModel", ".onnx")])
def test_a_folder_of_diffusers(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, suffix: str) -> None:
    """By the scheduler that came with it: the images that are drawn from the folder."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    if suffix == ".onnx":
        pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    if kind == "UNet2DModel":
        diffusers_twin(small_config(conditioning="bias")).save_pretrained(tmp_path / "unet")
        (tmp_path / "class_labels.json").write_text('{"label2id": {"a": 0, "b": 1, "c": 2}, "null_class_id": 3}')
    else:
        small_told().save(tmp_path)
    diffusers.DDIMScheduler(num_train_timesteps=100, timestep_spacing="trailing").save_pretrained(tmp_path / "scheduler")
    (tmp_path / "model_index.json").write_text("{}")
    target = tmp_path / f"step{suffix}"
    assert export_here(tmp_path, target, "--steps", "3") == 0
    assert "3 rows of scheduler" in capsys.readouterr().out
    model = load_diffusers(tmp_path)
    guided, labels = model.config.has_null_label, [0, 2]
    expected = generate(model, labels, guidance=2.5 if guided else 1.0, sampler="scheduler", steps=3, seed=SEED).astype(int)
    assert np.abs(loop(target, labels, guided) - expected).max() <= GRAY_LEVELS


def test_refusals(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    for arguments, message in [
        ((source, tmp_path / "step.bin"), "ends in neither .pt2 nor .onnx"),
        ((source, tmp_path / "none" / "step.pt2"), "is not a folder"),
        ((tmp_path / "nowhere", tmp_path / "step.pt2"), "there is no run in"),
        ((source, tmp_path / "step.onnx"), "pip install 'fastcond[export]'"),
        ((source, tmp_path / "step.pt2", "--sampler", "scheduler"), "no scheduler of its own"),
        ((source, tmp_path / "step.pt2", "--steps", "2000"), "2000"),
    ]:
        assert_one_line(export_here(*arguments), capsys, message)
    assert not list(tmp_path.iterdir())
