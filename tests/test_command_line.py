"""The surface of the command lines is frozen here, and so is how they complain."""

from __future__ import annotations

import argparse

import pytest

from fastcond import convert, export, sample, train
from fastcond.command_line import Parser, choose_device, image_size, number, path, run, seed_number, whole_number

# A flag is added or removed here on purpose, with a line in CHANGELOG.md, or not at all.
TRAIN_FLAGS = """
--accumulate --balance --batch-size --clip --compile --conditioning --data --device --dropout --ema --flip --help --keep
--label-dropout --labels --loss --lr --lr-schedule --minutes --no-balance --no-compile --no-flip --no-rescale-betas
--no-zero-terminal-snr --out --precision --prediction --preset --rescale-betas --resume --sample-every --save-every --schedule
--seed --size --steps --timesteps --variance --warmup --weight-decay --zero-terminal-snr
""".split()
SAMPLE_FLAGS = """
--batch-size --cfg --cfg-interval --cfg-plus-plus --checkpoint --compile --device --dynamic-threshold --eta --gif
--guidance-interval --guidance-rescale --guide --guide-checkpoint --help --label --n --no-compile --out --png --precision
--resume --run --rng --sampler --seed --steps --variance
""".split()
CONVERT_FLAGS = "--checkpoint --head-dim --help --qkv-order --schedule --scheduler --size".split()
EXPORT_FLAGS = "--batch-size --checkpoint --help --no-cfg --sampler --steps".split()
# Of a model of diffusers, in all three.
MODEL_FLAGS = "--label-mlp --null-label --prediction --timesteps --variant".split()


@pytest.mark.parametrize(
    ("module", "flags"),
    [
        (train, TRAIN_FLAGS),
        (sample, SAMPLE_FLAGS + MODEL_FLAGS),
        (convert, CONVERT_FLAGS + MODEL_FLAGS),
        (export, EXPORT_FLAGS + MODEL_FLAGS),
    ],
)
def test_the_flags_are_frozen(module: object, flags: list[str]) -> None:
    parser = module.build_parser()  # type: ignore[attr-defined]
    found = {option for action in parser._actions for option in action.option_strings if option.startswith("--")}
    assert sorted(found) == sorted(flags)


def test_defaults_are_frozen() -> None:
    defaults = vars(sample.build_parser().parse_args(["--label", "0"]))
    wanted = {"run": "runs/sprites", "cfg": 1.0, "n": 16, "sampler": None, "steps": None, "seed": 0, "out": "samples"}
    assert {name: defaults[name] for name in wanted} == wanted
    # All that a preset or a stored run decides is None until it is given.
    given = {name for name, value in vars(train.build_parser().parse_args([])).items() if value not in (None, False)}
    assert given == {"device", "keep"}


def test_the_samplers_are_frozen() -> None:
    choices = {action.dest: action.choices for action in sample.build_parser()._actions}
    assert list(choices["sampler"]) == ["ddpm", "ddim", "dpmpp2m", "heun", "scheduler"]


def test_cfg_says_what_it_is_and_that_1_is_off() -> None:
    assert "u + w(c-u); 1 is off" in " ".join(sample.build_parser().format_help().split())


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (image_size, "16", (16, 16)),
        (image_size, "16x24", (16, 24)),
        (number, "2.5", 2.5),
        (number, "-1e3", -1000.0),
        (whole_number, "10_000", 10_000),
        (seed_number, "0", 0),
        (seed_number, "4294967295", 2**32 - 1),
    ],
)
def test_values_are_read(kind: object, text: str, value: object) -> None:
    assert kind(text) == value  # type: ignore[operator]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *[(path, text) for text in ("", "  ")],
        *[(image_size, text) for text in ("", "0", "16x", "x16", "16x0", "-16", "16.5", "a")],
        *[(number, text) for text in ("", "two", "nan", "inf", "-inf")],
        *[(whole_number, text) for text in ("", "0", "-1", "1.5", "_1", "x")],
        *[(seed_number, text) for text in ("", "-1", "4294967296", "1.0")],
    ],
)
def test_bad_values_are_named(kind: object, text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"is no|is not|is empty"):
        kind(text)  # type: ignore[operator]


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "mps", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="--device is"):
        choose_device(name)


def test_errors_are_one_line_and_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(options: argparse.Namespace) -> int:
        raise ValueError("first line\n   second line")

    assert run(fail, Parser(prog="tool"), []) == 2
    assert capsys.readouterr().err == "tool: error: first line second line\n"
    with pytest.raises(ValueError, match="first line"):
        run(fail, Parser(prog="tool"), ["--debug"])


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("cannot allocate"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"),
    ],
)
def test_out_of_memory_is_one_line(capsys: pytest.CaptureFixture[str], error: Exception) -> None:
    def fail(options: argparse.Namespace) -> int:
        raise error

    assert run(fail, Parser(prog="tool"), []) == 2
    assert "tool: error: out of memory" in capsys.readouterr().err


def test_flags_are_not_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        sample.build_parser().parse_args(["--lab", "1"])


@pytest.mark.parametrize("error", [KeyError("a bug"), OverflowError("too large")])
def test_a_programming_error_is_not_hidden(error: Exception) -> None:
    def fail(options: argparse.Namespace) -> int:
        raise error

    with pytest.raises(type(error)):
        run(fail, Parser(prog="tool"), [])


@pytest.mark.parametrize("number", ["2147483648", "1" + "0" * 30, "9" * 5000])
@pytest.mark.parametrize("flag", ["--n", "--steps", "--batch-size"])
def test_numbers_that_no_array_has_are_one_short_line(capsys: pytest.CaptureFixture[str], flag: str, number: str) -> None:
    with pytest.raises(SystemExit) as stop:
        sample.build_parser().parse_args(["--run", "x", "--label", "0", flag, number])
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(lines) == 1 and len(lines[0]) < 300
    assert f"argument {flag}: " in lines[0] and "is too large; at most 2147483647 is possible" in lines[0]
    assert sample.build_parser().parse_args(["--run", "x", "--label", "0", "--n", "00_2147_483_647"]).n == 2**31 - 1


def test_what_a_terminal_obeys_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(options: argparse.Namespace) -> int:
        raise ValueError("a\x1b[2J\nb\x07 é")

    assert run(fail, Parser(prog="tool"), []) == 2
    assert capsys.readouterr().err == "tool: error: a\\x1b[2J b\\x07 é\n"


def test_a_file_is_named_with_what_went_wrong(capsys: pytest.CaptureFixture[str], tmp_path: object) -> None:
    def fail(options: argparse.Namespace) -> int:
        open(f"{tmp_path}/none").close()
        return 0

    assert run(fail, Parser(prog="tool"), []) == 2
    assert capsys.readouterr().err == f"tool: error: {tmp_path}/none: No such file or directory\n"


def test_an_unknown_flag_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(lambda options: 0, train.build_parser(), ["--cheese"])
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "--cheese" in lines[0]
