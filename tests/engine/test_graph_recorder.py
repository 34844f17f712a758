"""What the recorder asks of PyTorch, in which order, and that nothing stays open where a capture fails: with PyTorch played."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from fastcond.engine.graph_recorder import CudaGraphRecorder


class Gpu:
    """torch.cuda, as far as the recorder uses it: streams, capture and the allocator's pools, with their state.

    fails: at what a capture fails: "begin", "work" (a forbidden operation makes it invalid), "python" (an error that leaves it
        valid), "end", "instantiate", or "" for none.
    """

    def __init__(self) -> None:
        self.log: list[str] = []
        self.fails = ""
        self.stream = "caller"
        self.capturing = False
        self.invalid = False
        self.allocating: list[tuple[int, int]] = []  # pools that the allocator serves a capture from
        self.uses: dict[tuple[int, int], int] = {}  # of each pool
        self.workspaces = True

    def new_pool(self) -> tuple[int, int]:
        return 0, len(self.uses) + 1

    @contextmanager
    def use(self, stream: Any) -> Iterator[None]:
        before, self.stream = self.stream, str(stream)
        try:
            yield
        finally:
            self.stream = before

    def end_allocation(self, device: int, pool: tuple[int, int]) -> None:
        if pool not in self.allocating:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.allocating.remove(pool)

    def release(self, device: int, pool: tuple[int, int]) -> None:
        assert self.uses[pool] > 0
        self.uses[pool] -= 1


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    gpu = Gpu()

    class Stream:
        def __init__(self, name: str = "side") -> None:
            self.name = name

        def __str__(self) -> str:
            return self.name

        def wait_stream(self, other: Stream) -> None:
            gpu.log.append(f"{self} waits for {other}")

    class Graph:
        ended = False

        def capture_begin(self, pool: tuple[int, int], capture_error_mode: str) -> None:
            assert gpu.stream == "side" and not gpu.capturing and gpu.workspaces is False
            assert pool not in gpu.allocating, "beginAllocateToPool: already recording to mempool_id"
            assert gpu.uses.get(pool, 1) > 0, "a dead pool's name"
            assert capture_error_mode == "thread_local"
            self.pool_of = pool
            gpu.allocating.append(pool)
            gpu.uses[pool] = gpu.uses.get(pool, 0) + 1
            if gpu.fails == "begin":
                raise RuntimeError("begin")
            gpu.capturing = True

        def capture_end(self) -> None:
            if not gpu.capturing:
                raise RuntimeError("not capturing")
            gpu.capturing = False
            if gpu.invalid or gpu.fails == "end":
                gpu.invalid = False
                raise RuntimeError("invalidated")
            gpu.end_allocation(0, self.pool_of)
            self.ended = True
            if gpu.fails == "instantiate":
                raise torch.OutOfMemoryError("instantiate")

        def pool(self) -> tuple[int, int]:
            if not self.ended:
                raise RuntimeError("Called CUDAGraph::pool() without a preceding successful capture.")
            return self.pool_of

        def reset(self) -> None:
            if self.ended:
                gpu.release(0, self.pool_of)
            self.ended = False

        def __del__(self) -> None:
            self.reset()

        def replay(self) -> None:
            gpu.log.append("replay")

    @contextmanager
    def device(index: Any) -> Iterator[None]:
        yield

    def clear_workspaces() -> None:
        assert not gpu.capturing
        gpu.workspaces = False

    for name, value in {
        "Stream": Stream,
        "CUDAGraph": Graph,
        "device": device,
        "current_device": lambda: 0,
        "current_stream": lambda: Stream("caller"),
        "stream": gpu.use,
        "synchronize": lambda: gpu.log.append("synchronize"),
        "empty_cache": lambda: gpu.log.append("empty cache"),
        "graph_pool_handle": gpu.new_pool,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", clear_workspaces, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", gpu.end_allocation, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", gpu.release, raising=False)
    return gpu


def work_on(gpu: Gpu) -> Callable[[], None]:
    def work() -> None:
        gpu.log.append(f"work on {gpu.stream}")
        gpu.workspaces = True
        if gpu.capturing and gpu.fails == "work":
            gpu.invalid = True
            raise RuntimeError("operation not permitted when stream is capturing")
        if gpu.capturing and gpu.fails == "python":
            raise KeyboardInterrupt

    return work


def test_the_warm_up_is_on_the_side_and_waits_and_is_waited_for(gpu: Gpu) -> None:
    CudaGraphRecorder(torch.device("cuda")).warm_up(work_on(gpu))
    assert gpu.log == ["side waits for caller", "work on side", "work on side", "caller waits for side"]


def test_a_recording(gpu: Gpu) -> None:
    recorder = CudaGraphRecorder(torch.device("cuda"))
    recording = recorder.record(work_on(gpu))
    assert gpu.log == ["synchronize", "empty cache", "work on side"] and gpu.stream == "caller"
    assert not gpu.workspaces, "cuBLAS keeps none of the pool's memory"
    recording.replay()
    assert gpu.log[-1] == "replay"


def test_recordings_share_a_pool_while_one_lives(gpu: Gpu) -> None:
    recorder = CudaGraphRecorder(torch.device("cuda"))
    recordings = [recorder.record(work_on(gpu)) for _ in range(3)]
    assert gpu.uses == {(0, 1): 3}
    del recordings[:2]
    recordings.append(recorder.record(work_on(gpu)))
    assert gpu.uses == {(0, 1): 2}
    recordings.clear()
    assert gpu.uses == {(0, 1): 0}
    recordings.append(recorder.record(work_on(gpu)))
    assert gpu.uses == {(0, 1): 0, (0, 2): 1}, "a dead pool's name is not used again"


@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize("fails", ["begin", "work", "python", "end", "instantiate"])
def test_nothing_stays_open_where_a_capture_fails(gpu: Gpu, fails: str, others: int) -> None:
    recorder = CudaGraphRecorder(torch.device("cuda"))
    recordings = [recorder.record(work_on(gpu)) for _ in range(others)]
    gpu.fails = fails
    with pytest.raises(KeyboardInterrupt if fails == "python" else RuntimeError) as caught:
        recorder.record(work_on(gpu))
    assert fails != "work" or "not permitted" in str(caught.value), "the first error is the one that is told"
    del caught
    assert not gpu.capturing and not gpu.allocating and not gpu.workspaces and gpu.stream == "caller"
    assert gpu.uses == {(0, 1): others}, "only its own use of the pool is given back"
    gpu.fails = ""
    recordings.append(recorder.record(work_on(gpu)))
    assert gpu.uses == {(0, 1): others, (0, 2): 1}
    del recordings
    assert set(gpu.uses.values()) == {0}
