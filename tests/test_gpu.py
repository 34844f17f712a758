"""The main job on a GPU: train, resume, draw. Not one of these has to pass where there is none; they are skipped there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastcond import generate, load_run
from fastcond.training import RunDirectory
from tests.support.command_lines import sample_here, train_here

pytestmark = pytest.mark.gpu
SMALL = ("--data", "sprites", "--preset", "tiny", "--batch-size", "16", "--device", "cuda")


@pytest.mark.parametrize("flags", [("--no-compile", "--precision", "fp32"), ("--no-compile",), ("--compile",)])
def test_trains_resumes_and_draws(tmp_path: Path, flags: tuple[str, ...]) -> None:
    run = tmp_path / "run"
    assert train_here(*SMALL, *flags, "--steps", "6", "--out", run) == 0
    assert train_here("--out", run, "--resume", "--steps", "10", "--device", "cuda") == 0
    assert RunDirectory(run).checkpoint_steps() == [6, 10]
    assert (
        sample_here("--run", run, "--label", "all", "--cfg", "2.5", "--n", "2", "--device", "cuda", "--out", tmp_path / "s") == 0
    )


def test_the_same_images_as_on_a_cpu(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train_here(*SMALL, "--no-compile", "--precision", "fp32", "--steps", "20", "--out", run) == 0
    settings = {"guidance": 2.0, "sampler": "ddim", "steps": 10, "seed": 3}
    cpu, gpu = (generate(load_run(run, device=device).model, [0, 1, 2], **settings) for device in ("cpu", "cuda"))
    # TF32 convolutions keep 10 bits; over ten steps a pixel may move by a few of 255 levels.
    assert np.abs(cpu.astype(int) - gpu.astype(int)).mean() < 2
