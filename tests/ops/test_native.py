"""What the native library does besides kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from fastcond.ops import native
from tests.support.kernels import needs_native

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


def test_a_pytorch_whose_tensors_cannot_be_read_runs_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    library = SimpleNamespace(INTERFACE=native.INTERFACE, read_tensors_of=lambda *classes: False)
    monkeypatch.setattr(native.importlib, "import_module", lambda name: library)
    with pytest.warns(UserWarning, match="lacks the table of DLPack 1"):
        assert native._load() is None
    library.read_tensors_of = lambda *classes: True
    assert native._load() is library


@needs_native
def test_a_fingerprint_has_every_bit() -> None:
    values = torch.randn(2, 37, generator=torch.Generator().manual_seed(0))  # a tail, and lanes that differ in length
    before = native.fingerprint([values])
    assert native.fingerprint([values.clone()]) == before
    words, seen = values.view(torch.int32).view(-1), {before}
    for i in range(len(words)):
        for bit in range(32):
            words[i] ^= -(2**31) if bit == 31 else 1 << bit
            seen.add(native.fingerprint([values]))
            words[i] ^= -(2**31) if bit == 31 else 1 << bit
    assert len(seen) == 1 + 32 * len(words) and native.fingerprint([values]) == before


@needs_native
@pytest.mark.parametrize("size", [16, 64, 1000, 1 << 19])
def test_a_fingerprint_has_what_sums_do_not(size: int) -> None:
    """Order, signs, zeros' signs, and where a tensor ends."""
    values = torch.randn(size, generator=torch.Generator().manual_seed(1))
    swapped, turned = values.clone(), values.flip(0)
    swapped[[0, size // 2]] = values[[size // 2, 0]]
    zeros, rolled = torch.zeros(size), values.roll(8)
    halves, other_halves = [values[:3], values[3:]], [values[:5], values[5:]]
    pair = values.clone()
    pair[[1, 9]] *= -1  # the upper bits of two words of one lane or of neighbours
    some = [[values], [swapped], [turned], [rolled], [-values], [pair], [zeros], [-zeros], [zeros[:-1]], halves, other_halves]
    some += [halves[::-1], [*halves, zeros[:0]], []]
    assert len({native.fingerprint(tensors) for tensors in some}) == len(some)


@needs_native
def test_a_fingerprint_depends_on_no_threads() -> None:
    values, before = torch.randn(3, 700_001), torch.get_num_threads()
    try:
        found = set()
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.add(native.fingerprint([values, values[0]]))
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1


@needs_native
def test_a_fingerprint_of_any_layout() -> None:
    values = torch.randn(4, 3, 5, 2)
    memory = native.fingerprint([values])
    assert native.fingerprint([values.permute(3, 1, 0, 2)]) == memory, "the same memory"
    with_gaps = torch.zeros(4, 3, 5, 4)[..., ::2].copy_(values)
    assert native.fingerprint([with_gaps]) == memory
    assert native.fingerprint([values[:, :1].expand(4, 3, 5, 2)]) == native.fingerprint([values[:, [0, 0, 0]]])
