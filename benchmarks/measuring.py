"""What every bench shares: where it runs, how a function is timed, and what is written down beside the time.

A bench is one way to do one case of one op. The ways of a case are a group of pytest-benchmark's and run one after another,
so that their ratios are of one run:

    ours        the op, by whatever kernel it has on the device
    reference   the op's definition in plain PyTorch
    eager       what one writes without it, in PyTorch's or diffusers' operations
    compile     torch.compile of that
    copy        y.copy_(x) of tensors that move as many bytes, the bandwidth that there is
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcond.ops.native import keep_freed_memory

WAYS = ("ours", "reference", "eager", "compile", "copy")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

_SHORTEST_ROUND = 5e-4 if DEVICE.type == "cpu" else 5e-3  # seconds; a round ends with one synchronisation
SECONDS_OF_OP, SECONDS_OF_NETWORK = 0.3, 2.0  # aimed at for all rounds of a bench; a machine's speed drifts within a second
_ROUNDS = (5, 400)  # at least and at most


def describe(benchmark: Any, op: str, case: str, way: str, moved: int | None = None, **figures: float) -> None:
    """A bench's place in the report (see `measure`), and what else its row says."""
    benchmark.group = f"{op} {case} {DEVICE.type}"
    benchmark.extra_info.update(op=op, case=case, way=way, bytes=moved, figures=figures)


def measure(
    benchmark: Any,
    op: str,
    case: str,
    way: str,
    run: Callable[[], Any],
    moved: int | None = None,
    seconds: float = SECONDS_OF_OP,
    **figures: float,
) -> None:
    """Time `run`, which is called often enough for a median.

    Args:
        benchmark: pytest-benchmark's fixture.
        op, case, way: its place in the report.
        moved: bytes that must be read and written however it is done; None where bandwidth is not the point.
        seconds: aimed at for all rounds.
        figures: what else was found out, by name.
    """
    describe(benchmark, op, case, way, moved, **figures)
    if benchmark.disabled:
        benchmark(run)
        return
    keep_freed_memory()  # else a result of tens of megabytes is the system zeroing pages, or not, as the heap happens to lie
    calls, rounds = _plan(run, seconds)
    benchmark.pedantic(_synchronized(run, calls), rounds=rounds, iterations=calls)
    if moved is not None:
        benchmark.extra_info["GB/s"] = round(moved / 1e9 / benchmark.stats["median"], 3)


def copy(moved: int) -> Callable[[], Tensor]:
    """The way "copy": reads half of `moved` bytes and writes the other half."""
    x = torch.rand(moved // 8, device=DEVICE)  # not zeros: untouched pages of zeros are all the same page
    y = torch.ones_like(x)
    return lambda: y.copy_(x)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile for exactly the shapes of the case."""
    if DEVICE.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("torch.compile needs a C++ compiler")
    torch.compiler.reset()
    # On a CPU inductor's own random numbers take ten times as long as torch.randn, which would be too easy an opponent.
    return torch.compile(function, fullgraph=True, dynamic=False, options={"fallback_random": DEVICE.type == "cpu"})


def _synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def _plan(run: Callable[[], Any], seconds: float) -> tuple[int, int]:
    """(calls a round, rounds), from the time of one call after two that compile and warm up."""
    run()
    run()
    _synchronize()
    started = time.perf_counter()
    run()
    _synchronize()
    once = time.perf_counter() - started
    calls = max(1, math.ceil(_SHORTEST_ROUND / once))
    fewest, most = _ROUNDS
    return calls, min(max(int(seconds / (calls * once)), fewest), most)


def _synchronized(run: Callable[[], Any], calls: int) -> Callable[[], Any]:
    """`run`, waiting for the device after every `calls` of it: a GPU's queue is then timed to its end, not its launches."""
    if DEVICE.type != "cuda":
        return run
    done = 0

    def counted() -> Any:
        nonlocal done
        result, done = run(), done + 1
        if done % calls == 0:
            torch.cuda.synchronize()
        return result

    return counted


def size_name(size: tuple[int, ...]) -> str:
    """(32, 64, 16, 16) -> "32x64x16x16"."""
    return "x".join(map(str, size))
