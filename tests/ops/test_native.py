"""What the native library does besides kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from fastcond.ops import native

FAULTS = """
import resource, torch
from fastcond.ops.native import keep_freed_memory
torch.set_num_threads(1)
if {keep} and not keep_freed_memory():
    raise SystemExit(7)  # another C library than glibc
def rounds():
    for _ in range(4):
        maps = [torch.zeros(1 << 20) for _ in range(8)]  # 4 MiB each
        del maps
rounds()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
rounds()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(keep: bool) -> int:
    """Of four rounds of 32 MiB that are asked for, written and freed, where freed memory goes back unless it is kept.

    What goes back by itself depends on what lies behind it, so the process is told to give all of it back.
    """
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", FAULTS.format(keep=keep)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if result.returncode == 7:
        pytest.skip("the C library cannot be told to keep memory")
    assert result.returncode == 0, result.stderr
    return int(result.stdout)


@pytest.mark.skipif(native.native is None or sys.platform != "linux", reason="the native library of a Linux")
def test_freed_memory_is_kept() -> None:
    """Otherwise each round's 8192 pages are faults again."""
    assert page_faults(keep=False) > 8192
    assert page_faults(keep=True) < 100


def test_without_the_library_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "native", None)
    assert native.keep_freed_memory() is False


def test_a_library_of_other_sources_is_refused() -> None:
    for other in (SimpleNamespace(), SimpleNamespace(INTERFACE=native.INTERFACE + 1)):
        with pytest.raises(ImportError, match="was built of other sources"):
            native.require_interface(other)
    native.require_interface(SimpleNamespace(INTERFACE=native.INTERFACE))
    if native.native is not None:
        native.require_interface(native.native)
