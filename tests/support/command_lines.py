"""Running the command lines, in this process or in one of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastcond import convert, export, sample, train
from fastcond.command_line import run

REPOSITORY = Path(__file__).resolve().parents[2]


def train_here(*arguments: str | Path) -> int:
    """`python -m fastcond.train ...` in this process; returns the exit code."""
    return run(train.main, train.build_parser(), [str(argument) for argument in arguments])


def sample_here(*arguments: str | Path) -> int:
    """`python -m fastcond.sample ...` in this process; returns the exit code."""
    return run(sample.main, sample.build_parser(), [str(argument) for argument in arguments])


def convert_here(*arguments: str | Path) -> int:
    """`python -m fastcond.convert ...` in this process; returns the exit code."""
    return run(convert.main, convert.build_parser(), [str(argument) for argument in arguments])


def export_here(*arguments: str | Path) -> int:
    """`python -m fastcond.export ...` in this process; returns the exit code."""
    return run(export.main, export.build_parser(), [str(argument) for argument in arguments])


def start(module: str, *arguments: str | Path, cwd: Path | None = None, threads: int = 2) -> subprocess.Popen[str]:
    """`python -m fastcond.<module> ...` as a process, its output piped."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", f"fastcond.{module}", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=cwd,
    )


def assert_one_line(code: int, capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    """Exit code 2, and one line on stderr that has every part. Progress lines do not count."""
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("step ")]
    assert code == 2, lines
    assert len(lines) == 1, lines
    assert ": error: " in lines[0] and "Traceback" not in lines[0]
    for part in parts:
        assert part in lines[0], lines[0]
