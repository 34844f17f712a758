"""python -m fastcond.train, end to end."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcond.training import RunDirectory
from fastcond.training.metrics import read_metrics
from tests.support.command_lines import REPOSITORY, assert_one_line, start, train_here
from tests.support.tiny_runs import last_checkpoint

SMALL = ("--data", "digits", "--batch-size", "8", "--device", "cpu")


def wait_for_checkpoint(process: subprocess.Popen[str], run: Path) -> None:
    deadline = time.monotonic() + 120
    while not (RunDirectory(run).checkpoint_steps() and RunDirectory(run).exists()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.05)


def class_folders(root: Path, size: tuple[int, int] = (8, 8)) -> Path:
    for number, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for index in range(3):
            Image.new("RGB", size, (100 * number, 40 * index, 90)).save(root / name / f"{index}.png")
    return root


def test_a_run_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert train_here(*SMALL, "--steps", "52", "--sample-every", "30", "--out", run) == 0
    said = capsys.readouterr().out
    assert "1,797 images 8x8x1, 10 classes" in said and f"--run {run} --label all" in said
    assert RunDirectory(run).checkpoint_steps() == [52]
    grids = sorted(path.name for path in (run / "samples").iterdir())
    assert grids == ["00000030.png", "00000052.png"]
    with Image.open(run / "samples" / "00000052.png") as grid:
        assert grid.height >= 10 * 64 and grid.width >= 8 * 64
    (record,) = read_metrics(run / "metrics.jsonl")
    assert record["step"] == 50 and record["images"] == 400 and 0 < record["loss"] < 3
    assert {"learning_rate", "gradient_norm", "images_per_second", "elapsed_seconds"} <= set(record)


def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    arguments = (*SMALL, "--steps", "80", "--save-every", "8")
    whole = start("train", *arguments, "--out", tmp_path / "whole")
    assert whole.wait(240) == 0, whole.communicate()
    killed = start("train", *arguments, "--out", tmp_path / "killed")
    wait_for_checkpoint(killed, tmp_path / "killed")
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert RunDirectory(tmp_path / "killed").checkpoint_steps()[-1] < 80
    resumed = start("train", "--out", tmp_path / "killed", "--resume")
    assert resumed.wait(240) == 0, resumed.communicate()
    assert last_checkpoint(tmp_path / "killed") == last_checkpoint(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path, number: signal.Signals) -> None:
    run = tmp_path / "run"
    process = start("train", *SMALL, "--steps", "100000", "--save-every", "2", "--out", run)
    wait_for_checkpoint(process, run)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert "Traceback" not in err
    step = RunDirectory(run).checkpoint_steps()[-1]
    assert (
        f"stopped and saved at step {step}; go on with: python -m fastcond.train --out {run} --resume --save-every 2 --device cpu"
        in out
    )
    assert "stopping after this step" in err


def test_a_finished_run_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    arguments = (*SMALL, "--steps", "3", "--out", run, "--resume")
    assert train_here(*arguments) == 0  # --resume begins a run where there is none
    before = last_checkpoint(run)
    assert train_here(*arguments) == 0
    assert last_checkpoint(run) == before
    assert train_here("--out", run, "--resume", "--steps", "5") == 0
    assert RunDirectory(run).checkpoint_steps() == [3, 5]
    assert RunDirectory(run).read_config().training.steps == 5


def test_a_run_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert train_here(*SMALL, "--steps", "1", "--out", run) == 0
    capsys.readouterr()
    before = last_checkpoint(run)
    assert_one_line(train_here(*SMALL, "--steps", "2", "--out", run), capsys, "already holds a run", "--resume", "--out")
    assert last_checkpoint(run) == before


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--batch-size", "16"), ("--batch-size 16", "8")),
        (("--lr", "0.5"), ("--lr 0.5",)),
        (("--seed", "4"), ("--seed 4",)),
        (("--preset", "sprites"), ("--preset sprites",)),
        (("--prediction", "x_0"), ("--prediction x_0", "v")),
        (("--flip",), ("--flip",)),
    ],
)
def test_a_resumed_run_keeps_its_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], named: tuple[str, ...]
) -> None:
    run = tmp_path / "run"
    assert train_here(*SMALL, "--steps", "1", "--out", run) == 0
    capsys.readouterr()
    assert_one_line(train_here("--out", run, "--resume", *flags), capsys, *named, "keeps")


def test_a_resumed_run_may_find_its_data_elsewhere_but_not_other_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = class_folders(tmp_path / "data"), tmp_path / "run"
    flags = ("--batch-size", "2", "--device", "cpu", "--out", run)
    assert train_here("--data", data, "--steps", "1", *flags) == 0
    moved = data.rename(tmp_path / "moved")
    capsys.readouterr()
    assert_one_line(train_here("--out", run, "--resume", "--steps", "2"), capsys, str(data), "new place with --data")
    assert train_here("--data", moved, "--steps", "2", "--resume", *flags) == 0
    assert RunDirectory(run).read_config().data.source == str(moved)
    capsys.readouterr()
    other = class_folders(tmp_path / "other", (16, 8))
    assert_one_line(train_here("--data", other, "--resume", *flags), capsys, "8x16x3", "begun with other data", "8x8x3")
    (moved / "dog").rename(moved / "fox")
    assert_one_line(train_here("--resume", *flags), capsys, "(cat, fox)", "begun with other data", "(cat, dog)")


def test_a_resumed_run_may_move_to_another_machine(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train_here(*SMALL, "--steps", "1", "--out", run) == 0
    assert train_here("--out", run, "--resume", "--steps", "2", "--precision", "bf16") == 0
    assert RunDirectory(run).read_config().training.precision == "bf16"


def test_steps_behind_the_run_leave_it_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert train_here(*SMALL, "--steps", "3", "--out", run) == 0
    capsys.readouterr()
    assert_one_line(train_here("--out", run, "--resume", "--steps", "2"), capsys, "--steps 2", "step 3")
    assert RunDirectory(run).read_config().training.steps == 3


@pytest.mark.parametrize("conditioning", ["adagn", "scale_shift", "bias", "label_attention"])
def test_every_conditioning_trains(tmp_path: Path, conditioning: str) -> None:
    assert train_here(*SMALL, "--steps", "2", "--conditioning", conditioning, "--out", tmp_path / "run") == 0
    assert RunDirectory(tmp_path / "run").read_config().network.conditioning == conditioning


def test_settings_reach_the_run(tmp_path: Path) -> None:
    flags = "--steps 2 --prediction v --zero-terminal-snr --schedule cosine --timesteps 500 --loss min_snr --balance --flip"
    flags += " --accumulate 2 --lr 0.01 --lr-schedule constant --warmup 0 --clip 0.5 --ema 0.9 --label-dropout 0.2 --seed 7"
    flags += " --weight-decay 0.1 --dropout 0.1 --size 12x8 --precision bf16"
    assert train_here(*SMALL, *flags.split(), "--out", tmp_path / "run") == 0
    config = RunDirectory(tmp_path / "run").read_config()
    assert config.network.image_size == (12, 8) and config.network.dropout == 0.1
    assert config.diffusion.prediction == "v" and config.diffusion.zero_terminal_snr
    assert (config.diffusion.schedule, config.diffusion.num_timesteps) == ("cosine", 500)
    training = config.training
    assert (training.weighting, training.balanced, training.flip, training.accumulation) == ("min_snr", True, True, 2)
    assert (training.learning_rate, training.lr_schedule, training.warmup_steps) == (0.01, "constant", 0)
    assert (training.clip_grad_norm, training.ema_decay, training.label_dropout) == (0.5, 0.9, 0.2)
    assert (training.seed, training.weight_decay, training.precision) == (7, 0.1, "bf16")


def test_non_square_gray_arrays_train(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 255, (12, 8, 16), dtype=np.uint8))
    np.save(tmp_path / "labels.npy", np.eye(3)[np.arange(12) % 3])
    arguments = ("--data", tmp_path / "images.npy", "--labels", tmp_path / "labels.npy", "--steps", "2", "--batch-size", "4")
    assert train_here(*arguments, "--out", tmp_path / "run", "--device", "cpu") == 0
    network = RunDirectory(tmp_path / "run").read_config().network
    assert (network.image_size, network.in_channels, network.num_classes) == ((8, 16), 1, 3)


def test_the_same_as_the_tiles_of_the_course(tmp_path: Path, shared_data: Path) -> None:
    tiles = shared_data / "tiles-16"
    arguments = ("--data", tiles / "tiles_16x16.npy", "--labels", tiles / "tile_labels_16x16.npy", "--steps", "2")
    assert train_here(*arguments, "--batch-size", "4", "--out", tmp_path / "run", "--device", "cpu") == 0


@pytest.mark.parametrize("size", [16, 32])
def test_a_folder_of_tiles_trains(tmp_path: Path, shared_data: Path, size: int) -> None:
    arguments = ("--data", shared_data / "crawl-tiles", "--size", size, "--steps", "1", "--batch-size", "2")
    assert train_here(*arguments, "--out", tmp_path / "run", "--device", "cpu") == 0
    assert RunDirectory(tmp_path / "run").read_class_names() == ("floor", "item", "monster", "spell", "wall")


class TestErrors:
    """One line, exit code 2, and nothing is left behind."""

    def check(self, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[object, ...], *parts: str) -> None:
        code = train_here(*map(str, flags), "--out", tmp_path / "run", "--device", "cpu")
        assert_one_line(code, capsys, *parts)
        assert not (tmp_path / "run").exists()

    def test_missing_folder(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.check(tmp_path, capsys, ("--data", tmp_path / "nowhere"), "nowhere")

    def test_empty_class(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        data = class_folders(tmp_path / "data")
        (data / "emu").mkdir()
        self.check(tmp_path, capsys, ("--data", data), "emu")

    def test_corrupt_png(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        data = class_folders(tmp_path / "data")
        content = (data / "dog" / "1.png").read_bytes()
        (data / "dog" / "1.png").write_bytes(content[: len(content) // 2])
        self.check(tmp_path, capsys, ("--data", data), str(Path("dog") / "1.png"))

    def test_unequal_sizes(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        data = class_folders(tmp_path / "data")
        Image.new("RGB", (9, 8)).save(data / "dog" / "wide.png")
        self.check(tmp_path, capsys, ("--data", data), "wide.png", "--size")

    def test_labels_of_another_length(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        np.save(tmp_path / "images.npy", np.zeros((4, 8, 8, 3), np.uint8))
        np.save(tmp_path / "labels.npy", np.array([0, 1, 0]))
        self.check(tmp_path, capsys, ("--data", tmp_path / "images.npy", "--labels", tmp_path / "labels.npy"), "4", "3")

    def test_sizes_that_the_network_cannot_take(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        data = class_folders(tmp_path / "data", (15, 9))
        self.check(tmp_path, capsys, ("--data", data), "9x15", "--size 12x16")

    def test_impossible_settings(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        digits = ("--data", "digits")
        self.check(tmp_path, capsys, (*digits, "--zero-terminal-snr", "--prediction", "eps"), "prediction v or x_0")
        self.check(tmp_path, capsys, (*digits, "--batch-size", "10", "--accumulate", "4"), "10", "4 equal")
        self.check(tmp_path, capsys, (*digits, "--label-dropout", "1.5"), "1.5")
        self.check(tmp_path, capsys, (*digits, "--minutes", "-1"), "-1")

    def test_steps_and_minutes(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as stopped:
            train_here("--steps", "5", "--minutes", "1", "--out", tmp_path / "run")
        assert_one_line(int(str(stopped.value.code)), capsys, "--minutes", "--steps")

    def test_a_full_disk(self, tmp_path: Path) -> None:
        """A limit on the size of files stands for a disk that fills while the second checkpoint is written."""
        run = tmp_path / "run"
        assert train_here(*SMALL, "--steps", "2", "--out", run) == 0
        before = last_checkpoint(run)
        arguments = [sys.executable, "-m", "fastcond.train", "--out", str(run), "--resume", "--steps", "4"]
        result = subprocess.run(
            arguments,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)),
        )
        assert result.returncode == 2 and "Traceback" not in result.stderr
        assert "could not write checkpoint" in result.stderr and "the checkpoint of step 2 is whole" in result.stderr
        assert last_checkpoint(run) == before
        assert RunDirectory(run).checkpoint_steps() == [2]


def test_two_processes_train_one_model(tmp_path: Path) -> None:
    """torchrun over Gloo: the gradient of the same global batch, so the loss of one process to rounding."""
    arguments = (*SMALL, "--steps", "50", "--warmup", "0", "--lr", "1e-5")
    assert train_here(*arguments, "--out", tmp_path / "one") == 0
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port", str(port)]
    result = subprocess.run(
        [sys.executable, *launch, "-m", "fastcond.train", *arguments, "--out", str(tmp_path / "two")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        timeout=280,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("trained to the end") == 1
    one, two = (read_metrics(tmp_path / name / "metrics.jsonl")[-1] for name in ("one", "two"))
    # A learning rate of 1e-5 keeps the two runs' rounding from growing; each process computes half of every batch.
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)
    assert json.loads((tmp_path / "two" / "config.json").read_text())["training"]["batch_size"] == 8
