"""python -m fastcond.sample, end to end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcond import generate, load_run
from fastcond.drawing import choose_labels
from tests.support.command_lines import assert_one_line, sample_here, start, train_here


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on five classes whose network has learned next to nothing, quickly."""
    folder = tmp_path_factory.mktemp("runs") / "sprites"
    assert train_here("--steps", "3", "--batch-size", "8", "--device", "cpu", "--out", folder) == 0
    return folder


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the same classes, of other weights."""
    folder = tmp_path_factory.mktemp("runs") / "guide"
    assert train_here("--steps", "1", "--batch-size", "8", "--seed", "1", "--device", "cpu", "--out", folder) == 0
    return folder


def drawn(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "samples.npz") as arrays:
        return dict(arrays)


def test_files_and_arrays(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "samples"
    flags = ("--label", "2,hero", "--cfg", "2.5", "--n", "3", "--steps", "4", "--seed", "9", "--gif", "--out", out)
    assert sample_here("--run", run, *flags) == 0
    arrays = drawn(out)
    assert arrays["images"].dtype == np.uint8 and arrays["images"].shape == (6, 16, 16, 3)
    assert arrays["labels"].tolist() == [2, 2, 2, 0, 0, 0]
    assert arrays["seeds"].tolist() == [[9, 0], [9, 1], [9, 2]] * 2
    with Image.open(out / "0-hero-00002.png") as picture:
        assert np.array_equal(np.asarray(picture), arrays["images"][5])
    assert len(list(out.glob("*-*-*.png"))) == 6
    with Image.open(out / "grid.png") as grid, Image.open(out / "denoising.gif") as gif:
        assert grid.size == gif.size and grid.height >= 2 * 64
        assert gif.n_frames == 4


def test_an_image_is_the_same_whatever_is_drawn_with_it(run: Path, tmp_path: Path) -> None:
    """Equal to float rounding, so at most a gray level apart."""
    base = ("--run", run, "--steps", "5", "--cfg", "2")
    assert sample_here(*base, "--label", "all", "--n", "4", "--out", tmp_path / "all") == 0
    assert sample_here(*base, "--label", "food", "--n", "2", "--batch-size", "1", "--out", tmp_path / "food") == 0
    everything, food = drawn(tmp_path / "all"), drawn(tmp_path / "food")
    of_all = everything["images"][everything["labels"] == 2][:2].astype(int)
    assert np.abs(of_all - food["images"].astype(int)).max() <= 1
    assert (of_all[0] != of_all[1]).any()


def test_null_label_and_class_names(run: Path, tmp_path: Path) -> None:
    flags = ("--label", "null, side-facing hero,1", "--n", "1", "--steps", "2")
    assert sample_here("--run", run, *flags, "--out", tmp_path / "s") == 0
    assert drawn(tmp_path / "s")["labels"].tolist() == [5, 4, 1]
    assert (tmp_path / "s" / "4-side-facing-hero-00000.png").exists()


def test_samples_that_are_there_are_kept(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--run", run, "--label", "1", "--n", "1", "--steps", "2", "--out", tmp_path / "s")
    for seed in range(3):
        assert sample_here(*flags, "--seed", seed) == 0
    assert str(tmp_path / "s-3" / "grid.png") in capsys.readouterr().out.splitlines()[-1]
    assert [drawn(tmp_path / name)["seeds"][0, 0] for name in ("s", "s-2", "s-3")] == [0, 1, 2]


def test_the_python_api_gives_the_same_images(run: Path, tmp_path: Path) -> None:
    flags = ("--label", "3", "--cfg", "3", "--n", "2", "--sampler", "ddim", "--steps", "4", "--seed", "5")
    assert sample_here("--run", run, *flags, "--out", tmp_path / "s") == 0
    images = generate(load_run(run).model, [3, 3], guidance=3.0, sampler="ddim", steps=4, seed=5)
    assert np.array_equal(images, drawn(tmp_path / "s")["images"])


def test_guidance_flags_are_the_settings_of_the_api(run: Path, tmp_path: Path) -> None:
    """Together, and whichever of its names the interval is given by; samples.json says so."""
    flags = ("--label", "3", "--cfg", "6", "--n", "2", "--steps", "6", "--guidance-rescale", "0.7", "--dynamic-threshold", "1")
    for name in ("--guidance-interval", "--cfg-interval"):
        assert sample_here("--run", run, *flags, name, "0", "0.5", "--gif", "--out", tmp_path / name) == 0
    expected = generate(
        load_run(run).model,
        [3, 3],
        guidance=6.0,
        steps=6,
        guidance_interval=(0, 0.5),
        guidance_rescale=0.7,
        dynamic_threshold=1.0,
    )
    for name in ("--guidance-interval", "--cfg-interval"):
        assert np.array_equal(drawn(tmp_path / name)["images"], expected)
        settings = json.loads((tmp_path / name / "samples.json").read_text())
        assert settings["cfg_interval"] == [0, 0.5]
        assert (settings["guidance_rescale"], settings["dynamic_threshold"]) == (0.7, 1.0)


@pytest.mark.parametrize(("sampler", "steps"), [("dpmpp2m", "10 steps"), ("heun", "10 steps (18 evaluations)")])
def test_every_sampler_is_reported_with_what_it_costs(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], sampler: str, steps: str
) -> None:
    flags = ("--label", "3", "--cfg", "3", "--n", "1", "--sampler", sampler, "--steps", "10", "--out", tmp_path / "s")
    assert sample_here("--run", run, *flags) == 0
    assert f"with {sampler}, {steps}, cfg 3" in capsys.readouterr().out
    assert drawn(tmp_path / "s")["images"].std() > 5


@pytest.mark.parametrize(
    "flags",
    [
        ("--sampler", "ddim", "--eta", "0.5"),
        ("--variance", "fixed_large"),
        ("--cfg", "3", "--cfg-interval", "0.25", "0.75"),
        ("--guidance-rescale", "0.7"),
        ("--dynamic-threshold", "1"),
    ],
)
def test_settings_change_the_images(run: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
    base = ("--run", run, "--label", "0", "--n", "1", "--steps", "8", "--cfg", "1.5")
    plain = tuple("ddim" if flag == "ddim" else flag for flag in flags[:2]) if flags[1] == "ddim" else ()
    assert sample_here(*base, *plain, "--out", tmp_path / "plain") == 0
    assert sample_here(*base, *flags, "--out", tmp_path / "changed") == 0
    assert (drawn(tmp_path / "plain")["images"] != drawn(tmp_path / "changed")["images"]).any()


def test_the_command_of_the_readme(run: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    shutil.copytree(run, tmp_path / "runs" / "sprites")
    process = start("sample", "--label", "2", "--cfg", "2.5", "--steps", "3", cwd=tmp_path)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert len(drawn(tmp_path / "samples")["images"]) == 16
    assert "samples/grid.png" in out


def test_a_folder_with_other_files_is_not_touched(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "grid.png").write_bytes(b"precious")
    monkeypatch.chdir(mine)
    for _ in range(2):
        assert sample_here("--run", run, "--label", "1", "--n", "1", "--steps", "2", "--out", ".") == 0
    assert (mine / "grid.png").read_bytes() == b"precious" and len(list(mine.iterdir())) == 1
    assert (tmp_path / "mine-2" / "grid.png").exists() and (tmp_path / "mine-3" / "grid.png").exists()


def test_a_file_is_no_folder_for_samples(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text("precious")
    assert_one_line(sample_here("--run", run, "--label", "1", "--out", tmp_path / "mine"), capsys, "mine is a file")
    assert (tmp_path / "mine").read_text() == "precious"


def test_all_and_null_together(run: Path, tmp_path: Path) -> None:
    assert sample_here("--run", run, "--label", "all,null", "--n", "1", "--steps", "2", "--out", tmp_path / "s") == 0
    assert drawn(tmp_path / "s")["labels"].tolist() == [0, 1, 2, 3, 4, 5]


def test_a_model_of_few_timesteps_is_sampled_in_all_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--data", "digits", "--timesteps", "20", "--steps", "1", "--batch-size", "2", "--label-dropout", "0")
    assert train_here(*flags, "--device", "cpu", "--out", tmp_path / "run") == 0
    capsys.readouterr()
    with pytest.warns(UserWarning, match="trained with --label-dropout 0"):
        assert sample_here("--run", tmp_path / "run", "--label", "1", "--n", "1", "--cfg", "2", "--out", tmp_path / "s") == 0
    assert "ddpm, 20 steps" in capsys.readouterr().out


class TestErrors:
    """One line, exit code 2."""

    def test_no_run_yet(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code = sample_here("--run", tmp_path / "none", "--label", "0", "--out", tmp_path / "s")
        assert_one_line(code, capsys, "no run in", "python -m fastcond.train --out")

    @pytest.mark.parametrize(
        ("flags", "parts"),
        [
            (("--label", "5"), ("'5'", "0 hero", "4 side-facing hero", "null")),
            (("--label", "-1"), ("'-1'", "2 food")),
            (("--label", "dragon"), ("'dragon'", "1 non-hero", "3 spell")),
            (("--label", "1,1"), ("twice", "--n")),
            (("--label", " , "), ("names no class",)),
            (("--label", "1", "--steps", "1001"), ("1001", "1000")),
            (("--label", "1", "--sampler", "heun", "--steps", "1001"), ("1001", "1000")),
            (("--label", "1", "--cfg-interval", "0.8", "0.2"), ("0.8", "0.2")),
            (("--label", "1", "--cfg", "2", "--guidance-rescale", "1.5"), ("guidance rescale is 1.5", "[0, 1]")),
            (("--label", "1", "--guidance-rescale", "-0.1"), ("guidance rescale is -0.1", "[0, 1]")),
            (("--label", "1", "--dynamic-threshold", "0"), ("dynamic threshold is 0.0", "(0, 1]")),
            (("--label", "1", "--dynamic-threshold", "99.5"), ("dynamic threshold is 99.5", "such as 0.995")),
            (("--label", "1", "--eta", "0.5"), ("--eta", "--sampler ddim")),
            (("--label", "1", "--sampler", "ddim", "--variance", "fixed_large"), ("--variance", "--sampler ddpm")),
            (("--label", "1", "--sampler", "ddim", "--eta", "2"), ("eta is 2",)),
            (("--label", "1", "--precision", "bf16", "--device", "cpu"), ("'bf16'", "on a CPU leave it out or give 'fp32'")),
            (("--label", "1", "--compile", "--device", "cpu"), ("compile is True", "on a CPU leave it out")),
            (("--label", "1", "--checkpoint", "2"), ("step 2", "there are 3")),
        ],
    )
    def test_bad_values(
        self,
        run: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        flags: tuple[str, ...],
        parts: tuple[str, ...],
    ) -> None:
        code = sample_here("--run", run, "--out", tmp_path / "s", *(f"{flag}" for flag in flags))
        assert_one_line(code, capsys, *parts)
        assert not (tmp_path / "s").exists()

    @pytest.mark.parametrize(
        "flags",
        [
            ("--cfg", "high"),
            ("--cfg", "nan"),
            ("--n", "0"),
            ("--n", "100000000000000"),
            ("--seed", "-1"),
            ("--sampler", "x"),
            ("--guidance-rescale", "nan"),
            ("--dynamic-threshold", "most"),
            ("--rng", "numpy"),
        ],
    )
    def test_bad_flags(self, capsys: pytest.CaptureFixture[str], flags: tuple[str, str]) -> None:
        with pytest.raises(SystemExit) as stopped:
            sample_here("--label", "1", *flags)
        assert_one_line(int(str(stopped.value.code)), capsys, flags[0], flags[1])

    def test_truncated_checkpoint(self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        broken = tmp_path / "broken"
        shutil.copytree(run, broken)
        path = next(broken.glob("checkpoints/*/ema.safetensors"))
        path.write_bytes(path.read_bytes()[:1000])
        assert_one_line(sample_here("--run", broken, "--label", "1"), capsys, str(path), "damaged")

    def test_another_version(self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        other = tmp_path / "other"
        shutil.copytree(run, other)
        config = (other / "config.json").read_text()
        (other / "config.json").write_text(config.replace('"format_version": 1', '"format_version": 2'))
        assert_one_line(sample_here("--run", other, "--label", "1"), capsys, "format version 2", "reads version 1")


def test_a_guide_and_cfg_plus_plus(run: Path, guide: Path, tmp_path: Path) -> None:
    flags = ("--run", run, "--label", "1", "--n", "2", "--steps", "3", "--sampler", "ddim", "--cfg", "0.5")
    assert sample_here(*flags, "--out", tmp_path / "plain") == 0
    assert sample_here(*flags, "--guide", guide, "--cfg-plus-plus", "--out", tmp_path / "both") == 0
    settings = json.loads((tmp_path / "both" / "samples.json").read_text())
    assert settings["guide"] == str(guide) and settings["guide_sha256"] == load_run(guide).weights_sha256
    assert settings["cfg_plus_plus"]
    assert not np.array_equal(drawn(tmp_path / "plain")["images"], drawn(tmp_path / "both")["images"])


def test_a_guide_that_is_none(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    code = sample_here("--run", run, "--label", "1", "--cfg", "2", "--guide", tmp_path / "nowhere", "--out", tmp_path / "s")
    assert_one_line(code, capsys, "there is no run in")
    code = sample_here("--run", run, "--label", "1", "--cfg-plus-plus", "--out", tmp_path / "s")
    assert_one_line(code, capsys, "cfg_plus_plus needs a sampler that noises its prediction again; use ddim")
    more = ("--sampler", "ddim", "--cfg-plus-plus", "--cfg", "2.6", "--out", tmp_path / "s")
    assert_one_line(sample_here("--run", run, "--label", "1", *more), capsys, "with cfg_plus_plus it lies in 0 to 1")
    assert not (tmp_path / "s").exists()


def test_the_last_line_says_how_it_was_guided(run: Path, guide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--run", run, "--label", "1", "--n", "1", "--steps", "2", "--sampler", "ddim")
    both = ("--cfg", "0.5", "--guide", guide, "--cfg-plus-plus", "--guidance-rescale", "0.7", "--dynamic-threshold", "0.9")
    assert sample_here(*flags, *both, "--out", tmp_path / "s") == 0
    expected = f"2 steps, cfg 0.5++, guide {guide}, guidance rescale 0.7, dynamic threshold 0.9: "
    assert expected in capsys.readouterr().out
    with pytest.warns(UserWarning, match="--guidance-rescale has no effect with --cfg 1"):
        assert sample_here(*flags, "--guidance-rescale", "0.7", "--out", tmp_path / "t") == 0


def test_null_is_a_label_where_the_network_has_it() -> None:
    assert choose_labels("null,1", ["a", "b"]) == [2, 1]
    with pytest.raises(ValueError, match="'null' is no class of this run; it knows 0 a, 1 b, and all; it has no null label"):
        choose_labels("null", ["a", "b"], has_null_label=False)


def test_a_folder_of_neither(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = sample_here("--run", tmp_path, "--label", "1")
    assert_one_line(code, capsys, f"there is no run in {tmp_path}, and no model of diffusers: it holds neither config.json nor")
    code = sample_here("--run", "google/ddpm-cat", "--label", "1")
    assert_one_line(code, capsys, "there is no run in google/ddpm-cat, the folder does not exist", "nothing is downloaded")


def test_a_variance_by_either_spelling(run: Path, tmp_path: Path) -> None:
    flags = ("--run", run, "--label", "1", "--n", "1", "--steps", "2")
    for name in ("fixed-large", "fixed_large"):
        assert sample_here(*flags, "--variance", name, "--out", tmp_path / name) == 0
        assert json.loads((tmp_path / name / "samples.json").read_text())["variance"] == "fixed_large"
