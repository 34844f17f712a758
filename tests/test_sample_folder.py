"""The folder of a large set: constant memory, killed and gone on with, disks that fill up."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcond import images, sample_folder
from fastcond.sample_folder import SampleFolder
from tests.support.command_lines import REPOSITORY, assert_one_line, sample_here, start
from tests.support.tiny_runs import write_run

SHAPE = (8, 8, 3)
NAMES = ["hero", "side-facing hero"]
# A process that draws by a formula; it needs no PyTorch, so that it can be killed many times.
DRAW = """
import sys, time
from tests.test_sample_folder import fill
fill(sys.argv[1], n=int(sys.argv[2]), pause=float(sys.argv[3]), resume=True, all_pngs=True)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run")


def drawn(first: int, count: int) -> np.ndarray:
    """Image i is a function of i."""
    words = np.arange(first, first + count)[:, None] * 2654435761 + np.arange(int(np.prod(SHAPE))) * 40503
    return (words >> 7).astype(np.uint8).reshape(count, *SHAPE)


def fill(path: str | Path, n: int, *, pause: float = 0.0, batch: int = 16, settings: dict | None = None, **flags: bool) -> Path:
    folder = SampleFolder(
        Path(path), settings or {"cfg": 2.5}, labels=[0, 1], n=n, names=NAMES, image_shape=SHAPE, seed=7, **flags
    )
    with folder:
        for first in range(folder.begun_with, folder.total, batch):
            folder.add(drawn(first, min(batch, folder.total - first)))
            time.sleep(pause)
    return folder.path


def test_a_set_has_its_arrays_and_its_pngs(tmp_path: Path) -> None:
    path = fill(tmp_path / "s", 20)
    with np.load(path / "samples.npz") as arrays:
        assert np.array_equal(arrays["images"], drawn(0, 40))
        assert arrays["labels"].tolist() == [0] * 20 + [1] * 20 and arrays["labels"].dtype == np.int64
        assert arrays["seeds"].tolist() == [[7, i] for i in range(20)] * 2
    with Image.open(path / "1-side-facing-hero-00003.png") as picture:
        assert np.array_equal(np.asarray(picture), drawn(23, 1)[0])
    assert len(list(path.glob("*.png"))) == 40


def test_many_images_have_no_single_pngs_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_folder, "MOST_SINGLE_PNGS", 10)
    assert not list(fill(tmp_path / "none", 12).rglob("*.png"))
    path = fill(tmp_path / "all", 12, all_pngs=True)
    assert len(list(path.rglob("*.png"))) == 24 and len(list((path / "0-hero" / "000010").iterdir())) == 2
    # Asked for later, they are written from the array.
    fill(tmp_path / "none", 12, all_pngs=True, resume=True)
    for png in path.rglob("*.png"):
        assert (tmp_path / "none" / png.relative_to(path)).read_bytes() == png.read_bytes()


def test_memory_does_not_grow_with_the_set(tmp_path: Path) -> None:
    peaks = []
    for n in (500, 25_000):
        tracemalloc.start()
        path = fill(tmp_path / str(n), n, batch=500)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (path / "samples.npz").stat().st_size > 9_600_000
    assert peaks[1] - peaks[0] < 2_500_000, peaks


def test_killed_again_and_again_it_is_completed(tmp_path: Path) -> None:
    """By SIGKILL, at any moment from the first; the array's counter moves every time, for the test."""
    whole = fill(tmp_path / "whole", 600, all_pngs=True)
    dice, kills, counts = random.Random(0), 0, []
    command = [sys.executable, "-c", DRAW, str(tmp_path / "killed"), "600", "0.02"]
    while kills < 12:
        process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
        try:
            process.wait(timeout=dice.uniform(0.0, 1.6) if kills % 3 else dice.uniform(0.0, 0.5))
            assert process.returncode == 0, process.stderr.read() if process.stderr else ""
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            counts.append(sample_folder.images_in(tmp_path / "killed" / "samples.npz", SHAPE))
    assert kills >= 3 and counts == sorted(counts), counts
    fill(tmp_path / "killed", 600, all_pngs=True, resume=True)
    assert_same_files(whole, tmp_path / "killed")


def assert_same_files(a: Path, b: Path) -> None:
    names = sorted(path.relative_to(a) for path in a.rglob("*") if path.is_file())
    left = [path for path in b.rglob(".partial-*") if path.suffix == ".png"]  # of a kill while a PNG was written
    assert names == sorted(path.relative_to(b) for path in b.rglob("*") if path.is_file() and path not in left)
    for name in names:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def test_a_disk_without_room_for_the_set_is_told_before_anything_is_drawn(tmp_path: Path) -> None:
    script = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n" + DRAW
    pytest.importorskip("resource")
    command = [sys.executable, "-c", script, str(tmp_path / "s"), "4000", "0"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    last = result.stderr.splitlines()[-1]
    assert last.startswith("OSError") and "8,000 images need 1.7 MB; use a smaller --n" in last, result.stderr
    assert not (tmp_path / "s").exists()


def test_a_set_of_other_settings_is_not_gone_on_with(tmp_path: Path) -> None:
    fill(tmp_path / "s", 3)
    with pytest.raises(ValueError, match=r"begun with cfg 2.5, not 3.0; choose another --out"):
        fill(tmp_path / "s", 3, resume=True, settings={"cfg": 3.0})
    (tmp_path / "s" / "samples.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        fill(tmp_path / "s", 3, resume=True)
    (tmp_path / "s" / "samples.json").unlink()
    with pytest.raises(ValueError, match=r"no samples\.json"):
        fill(tmp_path / "s", 3, resume=True)


def test_a_png_that_a_power_failure_emptied_is_written_again(tmp_path: Path) -> None:
    path = fill(tmp_path / "s", 5)
    whole = (path / "0-hero-00002.png").read_bytes()
    (path / "0-hero-00002.png").write_bytes(b"")
    (path / "0-hero-00004.png").unlink()
    fill(path, 5, resume=True)
    assert (path / "0-hero-00002.png").read_bytes() == whole and (path / "0-hero-00004.png").exists()


class TestCommand:
    """The same through `python -m fastcond.sample`."""

    @pytest.fixture
    def flags(self, run: Path) -> tuple[str | Path, ...]:
        return ("--run", run, "--label", "dark,bright", "--n", "20", "--steps", "3", "--batch-size", "8", "--gif")

    def test_killed_and_resumed(self, flags: tuple[str | Path, ...], tmp_path: Path) -> None:
        many = (*flags, "--n", "300", "--resume")
        process = start("sample", *many, "--out", tmp_path / "whole", threads=1)
        assert process.communicate()[1] == "" and process.returncode == 0
        for delay in (0.1, 1.2):
            process = start("sample", *many, "--out", tmp_path / "killed", threads=1)
            deadline = time.monotonic() + 60
            while process.poll() is None and not list(tmp_path.glob("killed/.partial-samples.npz")):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            time.sleep(delay)
            process.kill()
            process.communicate()
        for _ in range(2):  # the second time there is nothing left to do
            process = start("sample", *many, "--out", tmp_path / "killed", threads=1)
            assert process.communicate()[1] == "" and process.returncode == 0
        assert_same_files(tmp_path / "whole", tmp_path / "killed")

    def test_a_full_disk_keeps_what_was_drawn(
        self, flags: tuple[str | Path, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert sample_here(*flags, "--out", tmp_path / "whole") == 0
        capsys.readouterr()
        write_bytes = Path.write_bytes

        def write_until_full(path: Path, content: bytes) -> int:
            if "00013" in path.name:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            return write_bytes(path, content)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", write_until_full)
            code = sample_here(*flags, "--out", tmp_path / "s")
        # The batches of images 0 to 15 had been drawn.
        assert_one_line(code, capsys, "No space left", "16 of 40 images are kept", "--resume")
        with np.load(tmp_path / "s" / "samples.npz") as short, np.load(tmp_path / "whole" / "samples.npz") as whole:
            assert all(np.array_equal(short[name], whole[name][:16]) for name in ("images", "labels", "seeds"))
        assert sample_here(*flags, "--out", tmp_path / "s", "--resume") == 0
        assert_same_files(tmp_path / "whole", tmp_path / "s")

    def test_ctrl_c_keeps_what_was_drawn(
        self, flags: tuple[str | Path, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add = SampleFolder.add

        def add_two_batches(self: SampleFolder, batch: np.ndarray) -> None:
            if len(batch) != 8 or self._stream.done >= 8:
                raise KeyboardInterrupt
            add(self, batch)

        with monkeypatch.context() as patch:
            patch.setattr(SampleFolder, "add", add_two_batches)
            assert sample_here(*flags, "--out", tmp_path / "s") == 130
        assert "interrupted: " in (line := capsys.readouterr().err.splitlines()[-1]) and "--resume" in line
        with np.load(tmp_path / "s" / "samples.npz") as arrays:
            assert len(arrays["images"]) in (8, 16)
        with monkeypatch.context() as patch:
            patch.setattr(SampleFolder, "add", lambda self, batch: (_ for _ in ()).throw(KeyboardInterrupt))
            assert sample_here(*flags, "--out", tmp_path / "none") == 130
        assert not (tmp_path / "none").exists()
        assert sample_here(*flags, "--out", tmp_path / "s", "--resume") == 0
        assert len(list((tmp_path / "s").glob("*-*-*.png"))) == 40

    def test_resume_wants_the_same_flags(
        self, flags: tuple[str | Path, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert sample_here(*flags, "--out", tmp_path / "s") == 0
        capsys.readouterr()
        code = sample_here(*flags, "--seed", "3", "--out", tmp_path / "s", "--resume")
        assert_one_line(code, capsys, "begun with seed 0, not 3")

    def test_resume_wants_the_same_guidance(
        self, flags: tuple[str | Path, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        flags = (*flags, "--cfg", "3", "--resume")
        corrected = (*flags, "--guidance-rescale", "0.7", "--dynamic-threshold", "0.9", "--out", tmp_path / "corrected")
        assert sample_here(*corrected) == 0 and sample_here(*flags, "--out", tmp_path / "plain") == 0
        capsys.readouterr()
        assert_one_line(sample_here(*corrected, "--guidance-rescale", "0.5"), capsys, "begun with guidance_rescale 0.7, not 0.5")
        assert_one_line(sample_here(*corrected, "--guidance-rescale", "0"), capsys, "begun with guidance_rescale 0.7, not null")
        code = sample_here(*flags, "--dynamic-threshold", "0.9", "--out", tmp_path / "plain")
        assert_one_line(code, capsys, "begun with dynamic_threshold null, not 0.9")
        # The same again is no other setting, and neither is what says that it is off.
        assert sample_here(*corrected) == 0
        assert sample_here(*flags, "--guidance-rescale", "0", "--out", tmp_path / "plain") == 0
        assert "guidance_rescale" not in (tmp_path / "plain" / "samples.json").read_text()

    def test_the_grid_shows_the_first_rows(self, flags: tuple[str | Path, ...], tmp_path: Path) -> None:
        assert sample_here(*flags, "--n", "130", "--steps", "1", "--out", tmp_path / "s") == 0
        with Image.open(tmp_path / "s" / "grid.png") as grid:
            assert grid.height == images._GAP + 20 * (64 + images._GAP)
