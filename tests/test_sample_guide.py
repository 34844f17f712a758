"""python -m fastcond.sample --guide: which model guides, and which cannot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fastcond import generate, load_run
from tests.support.command_lines import assert_one_line, sample_here
from tests.support.tiny_runs import CLASS_NAMES, write_run
from tests.test_sample import drawn

FLAGS = ("--label", "all", "--n", "2", "--steps", "3", "--cfg", "3", "--sampler", "ddim", "--device", "cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run", steps=(1, 5))


def test_an_earlier_checkpoint_of_the_same_run_guides(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As `generate` with the two models; samples.json and the last line say which."""
    out = tmp_path / "s"
    assert sample_here("--run", run, "--guide", run, "--guide-checkpoint", "1", *FLAGS, "--out", out) == 0
    model, guide = load_run(run).model, load_run(run, step=1)
    expected = generate(
        model, [0, 0, 1, 1], indices=[0, 1, 0, 1], steps=3, guidance=3.0, sampler="ddim", guide=guide.model, batch_size=64
    )
    assert np.array_equal(drawn(out)["images"], expected)
    unguided = generate(model, [0, 0, 1, 1], indices=[0, 1, 0, 1], steps=3, sampler="ddim")
    assert not np.array_equal(expected, unguided)
    settings = json.loads((out / "samples.json").read_text())
    assert (settings["guide"], settings["guide_step"]) == (str(run), 1)
    assert settings["guide_sha256"] == guide.weights_sha256 != settings["weights_sha256"]
    assert f"guide step 1 of {run}: " in capsys.readouterr().out


def test_the_model_is_no_guide_of_itself(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By its weights, under whatever name they are."""
    copy = write_run(tmp_path / "copy", steps=(1, 5))
    same = [("--guide", run), ("--guide", run, "--guide-checkpoint", "5"), ("--guide", copy)]
    for flags in (*same, ("--checkpoint", "1", "--guide", copy, "--guide-checkpoint", "1")):
        code = sample_here("--run", run, *flags, *FLAGS, "--out", tmp_path / "s")
        assert_one_line(code, capsys, "so it guides nowhere", "an earlier checkpoint of the run with --guide-checkpoint")
    assert not (tmp_path / "s").exists()


def test_a_guide_that_calls_the_labels_otherwise(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_run(tmp_path / "other", seed=1, class_names=CLASS_NAMES[::-1])
    code = sample_here("--run", run, "--guide", other, *FLAGS, "--out", tmp_path / "s")
    assert_one_line(code, capsys, "label 0 is 'dark' to the model and 'bright' to the guide; they must have the same classes")
    assert not (tmp_path / "s").exists()
    nameless = write_run(tmp_path / "nameless", seed=1, class_names=("0", "1"))
    assert sample_here("--run", run, "--guide", nameless, *FLAGS, "--out", tmp_path / "s") == 0


def test_a_checkpoint_that_is_none(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("--out", tmp_path / "s")
    code = sample_here("--run", run, "--guide", run, "--guide-checkpoint", "2", *FLAGS, *out)
    assert_one_line(code, capsys, "no checkpoint of step 2; there are 1, 5")
    code = sample_here("--run", run, "--guide-checkpoint", "1", *FLAGS, *out)
    assert_one_line(code, capsys, "--guide-checkpoint is of the run that --guide names; give --guide too")
    (tmp_path / "diffusers").mkdir()
    (tmp_path / "diffusers" / "model_index.json").write_text("{}")
    code = sample_here("--run", run, "--guide", tmp_path / "diffusers", "--guide-checkpoint", "1", *FLAGS, *out)
    assert_one_line(code, capsys, "is a folder of diffusers, which has no checkpoints; leave out --guide-checkpoint")
    assert not (tmp_path / "s").exists()
