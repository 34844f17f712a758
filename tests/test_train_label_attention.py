"""python -m fastcond.train --conditioning label-attention: the blog's system, from the sprite course's arrays."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcond.diffusion import NoiseSchedule, TerminalSignalWarning
from fastcond.training import RunDirectory
from tests.support.command_lines import assert_one_line, start, train_here
from tests.support.tiny_runs import last_checkpoint

SMALL = ("--batch-size", "4", "--conditioning", "label-attention", "--preset", "tiny", "--device", "cpu")
PUBLISHED = ("--schedule", "linear", "--prediction", "eps", "--timesteps", "200", "--no-rescale-betas")
WARNING = "the last of 200 timesteps keeps alphas_cumprod = 0.132"


def write_arrays(folder: Path, rows: np.ndarray) -> tuple[str | Path, ...]:
    """8x8 images of the course's form, whose brightness is where a row's weight lies. Returns the flags."""
    brightness = 40 + 170 * rows @ np.linspace(0, 1, rows.shape[1])
    images = brightness[:, None, None, None] + np.random.default_rng(0).integers(0, 40, (len(rows), 8, 8, 3))
    np.save(folder / "images.npy", images.clip(0, 255).astype(np.uint8))
    np.save(folder / "labels.npy", rows)
    return ("--data", folder / "images.npy", "--labels", folder / "labels.npy", *SMALL)


def test_the_blog_s_process_as_published(tmp_path: Path) -> None:
    """T = 200 and betas as they are: said once, whatever draws from it in between, stored, and sampled from."""
    flags = write_arrays(tmp_path, np.eye(3)[np.arange(12) % 3])
    process = start("train", *flags, *PUBLISHED, "--steps", "3", "--sample-every", "1", "--out", tmp_path / "run")
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0 and err.count(WARNING) == 1, err
    config = RunDirectory(tmp_path / "run").read_config()
    assert config.network.conditioning == "label_attention" and config.network.num_classes == 3
    assert not config.diffusion.rescale_linear_betas and config.diffusion.num_timesteps == 200
    with pytest.warns(TerminalSignalWarning, match=r"0\.132"):
        assert float(NoiseSchedule.from_config(config.diffusion).alphas_cumprod[-1]) == pytest.approx(0.132, abs=5e-4)
    drawn = ("--label", "all", "--n", "2", "--steps", "5", "--cfg", "2", "--device", "cpu")
    process = start("sample", "--run", tmp_path / "run", *drawn, "--out", tmp_path / "samples")
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0 and err.count(WARNING) == 1, err
    with np.load(tmp_path / "samples" / "samples.npz") as arrays:
        assert arrays["images"].shape == (6, 8, 8, 3) and (arrays["images"][0] != arrays["images"][1]).any()


def test_betas_are_rescaled_unless_asked_otherwise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = write_arrays(tmp_path, np.eye(3)[np.arange(12) % 3])
    linear = ("--schedule", "linear", "--timesteps", "200", "--steps", "1", "--out", tmp_path / "run")
    assert train_here(*flags, *linear) == 0
    stored = RunDirectory(tmp_path / "run").read_config().diffusion
    assert stored.rescale_linear_betas and float(NoiseSchedule.from_config(stored).alphas_cumprod[-1]) < 1e-4
    capsys.readouterr()
    code = train_here("--out", tmp_path / "run", "--resume", "--no-rescale-betas")
    assert_one_line(code, capsys, "--rescale-betas False differs from the run's True")
    code = train_here(*flags, "--no-rescale-betas", "--out", tmp_path / "cosine")
    assert_one_line(code, capsys, "--no-rescale-betas is a setting of the linear schedule", "this one is cosine")
    assert not (tmp_path / "cosine").exists()


ROWS = np.array([[1, 0, 0], [0.5, 0.5, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1], [0, 0.25, 0.75]] * 2)


def test_soft_rows_and_several_classes_train_and_resume_to_the_same_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (*write_arrays(tmp_path, ROWS), "--warmup", "0", "--lr-schedule", "constant", "--flip")
    assert train_here(*flags, "--steps", "6", "--sample-every", "4", "--out", tmp_path / "whole") == 0
    with Image.open(tmp_path / "whole" / "samples" / "00000004.png") as grid:
        assert grid.height >= 6 * 64, "a row of the picture for each of the six rows of labels"
    assert train_here(*flags, "--steps", "2", "--out", tmp_path / "parts") == 0
    assert train_here("--steps", "6", "--out", tmp_path / "parts", "--resume") == 0
    assert last_checkpoint(tmp_path / "parts") == last_checkpoint(tmp_path / "whole")
    assert "3 classes" in capsys.readouterr().out


def test_a_resumed_run_keeps_its_kind_of_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows and single classes look alike to the network, which would go on to learn something else."""
    images, classes = write_arrays(tmp_path, ROWS)[:2], tmp_path / "classes.npy"
    np.save(classes, np.arange(len(ROWS)) % 3)
    for begun, other, found, wanted in (
        (tmp_path / "labels.npy", classes, "one class an image", "rows of numbers"),
        (classes, tmp_path / "labels.npy", "rows of numbers", "one class an image"),
    ):
        out = ("--out", tmp_path / f"{begun.stem}-run")
        assert train_here(*images, "--labels", begun, *SMALL, "--steps", "1", *out) == 0
        capsys.readouterr()
        code = train_here("--labels", other, "--steps", "2", "--resume", *out)
        message = f"{other} has labels that are {found}; this run was begun with labels that are {wanted}"
        assert_one_line(code, capsys, message)
        assert train_here("--labels", begun, "--steps", "2", "--resume", *out) == 0
    config = tmp_path / "labels-run" / "config.json"
    values = json.loads(config.read_text())
    del values["data"]["label_rows"]  # as in runs from before it was noted
    config.write_text(json.dumps(values))
    assert train_here("--labels", tmp_path / "labels.npy", "--steps", "3", "--resume", *out[:1], config.parent) == 0


def test_what_takes_no_rows_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = write_arrays(tmp_path, ROWS)
    out = ("--steps", "1", "--out", tmp_path / "run")
    assert_one_line(train_here(*flags, "--balance", *out), capsys, "--balance", "labels that are rows name no class")
    code = train_here(*flags[:4], *out)
    assert_one_line(code, capsys, "images.npy", "image 1 is not one-hot", "for --conditioning label-attention")
    assert not (tmp_path / "run").exists()
