"""python -m fastcond.convert, and sampling from what it writes, end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fastcond import convert
from fastcond.command_line import run as run_command
from tests.support.command_lines import assert_one_line, sample_here, train_here
from tests.tolerances import GRAY_LEVELS


def convert_here(*arguments: object) -> int:
    return run_command(convert.main, convert.build_parser(), [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs by conditioning, whose networks have learned next to nothing, quickly."""
    folder = tmp_path_factory.mktemp("runs")
    for conditioning in ("bias", "label-attention", "adagn"):
        flags = ("--steps", "2", "--batch-size", "8", "--device", "cpu", "--conditioning", conditioning)
        assert train_here(*flags, "--out", folder / conditioning) == 0
    return folder


@pytest.mark.parametrize("conditioning", ["bias", "label-attention"])
def test_a_run_and_its_conversion_draw_the_same(runs: Path, tmp_path: Path, conditioning: str) -> None:
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    target = tmp_path / "converted"
    assert convert_here(runs / conditioning, target) == 0
    flags = ("--label", "hero,2", "--n", "2", "--steps", "3", "--cfg", "2", "--sampler", "ddim")
    assert sample_here("--run", runs / conditioning, *flags, "--out", tmp_path / "ours") == 0
    assert sample_here("--run", target, *flags, "--out", tmp_path / "theirs") == 0
    ours, theirs = (np.load(tmp_path / name / "samples.npz")["images"].astype(int) for name in ("ours", "theirs"))
    # The schedule goes through diffusers' float32.
    assert np.abs(ours - theirs).max() <= 2
    assert sample_here("--run", target, "--label", "1", "--n", "1", "--steps", "2", "--out", tmp_path / "own") == 0, (
        "its scheduler"
    )


def test_the_same_command_draws_the_same_from_a_run_and_its_conversion(tmp_path: Path) -> None:
    """Each with its defaults, of a schedule that ends in pure noise: both begin at T - 1."""
    flags = ("--steps", "2", "--batch-size", "8", "--device", "cpu", "--conditioning", "bias")
    assert train_here(*flags, "--prediction", "v", "--zero-terminal-snr", "--out", tmp_path / "run") == 0
    assert convert_here(tmp_path / "run", tmp_path / "converted") == 0
    drawn = []
    for name in ("run", "converted"):
        sample = ("--run", tmp_path / name, "--label", "0,3", "--n", "2", "--steps", "20", "--cfg", "1.5")
        assert sample_here(*sample, "--out", tmp_path / f"{name}-samples") == 0
        drawn.append(np.load(tmp_path / f"{name}-samples" / "samples.npz")["images"].astype(int))
    assert np.abs(drawn[0] - drawn[1]).max() <= GRAY_LEVELS


def test_another_scheduler_for_what_came_with_one(runs: Path, tmp_path: Path) -> None:
    assert convert_here(runs / "bias", tmp_path / "one") == 0
    assert convert_here(tmp_path / "one", tmp_path / "two", "--scheduler", "DDIMScheduler") == 0
    found = [json.loads((tmp_path / name / "scheduler/scheduler_config.json").read_text()) for name in ("one", "two")]
    assert [config["_class_name"] for config in found] == ["DDPMScheduler", "DDIMScheduler"]
    assert [config["timestep_spacing"] for config in found] == ["trailing", "trailing"]
    assert json.loads((tmp_path / "two/model_index.json").read_text())["scheduler"] == ["diffusers", "DDIMScheduler"]


def test_a_second_conversion_is_the_first(runs: Path, tmp_path: Path) -> None:
    assert convert_here(runs / "bias", tmp_path / "one") == 0
    assert convert_here(tmp_path / "one", tmp_path / "two") == 0
    for file in sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_refusals(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    converted = tmp_path / "converted"
    assert convert_here(runs / "bias", converted) == 0
    capsys.readouterr()
    for arguments, message in [
        ((runs / "adagn", tmp_path / "x"), "conditioning 'adagn' cannot be expressed in diffusers' UNet2DModel"),
        ((runs / "adagn", tmp_path / "x"), "train with --conditioning bias, scale_shift or label-attention"),
        ((tmp_path / "nowhere", tmp_path / "x"), "there is no run in"),
        ((runs / "bias", converted), "already exists and is not empty"),
        ((runs / "bias", tmp_path / "x", "--scheduler", "MagicScheduler"), "'MagicScheduler'"),
        ((converted, tmp_path / "x", "--scheduler", "MagicScheduler"), "'MagicScheduler'"),
        ((converted, tmp_path / "x", "--checkpoint", "2"), "has no checkpoints; leave out --checkpoint"),
        ((runs / "bias", tmp_path / "x", "--checkpoint", "7"), "7"),
    ]:
        assert_one_line(convert_here(*arguments), capsys, message)
    assert not (tmp_path / "x").exists()
