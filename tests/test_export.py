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
from fastcond.ops import philox_normal
from tests.support.command_lines import REPOSITORY, assert_one_line
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
