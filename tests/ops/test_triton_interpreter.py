"""Starts the tests of tests/interpreted in processes where Triton interprets its kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(path.name for path in (ROOT / "tests" / "interpreted").glob("test_*.py"))


def run(module: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/interpreted/{module}"]
    # One thread: the tensors are small, and the interpreter is Python.
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def outcomes() -> dict[str, subprocess.CompletedProcess[str]]:
    """All modules, two at a time."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        return dict(zip(MODULES, pool.map(run, MODULES), strict=True))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("module", MODULES)
def test_interpreted(module: str, outcomes: dict[str, subprocess.CompletedProcess[str]]) -> None:
    done = outcomes[module]
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-6000:] + done.stderr[-2000:]
