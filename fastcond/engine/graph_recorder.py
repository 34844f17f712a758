"""Recording work on a GPU as a CUDA graph, so that a recording that fails leaves nothing behind.

Read in the sources of PyTorch 2.13 and not yet run on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol
from weakref import WeakSet

import torch

_WARM_UPS = 2  # the first compiles and chooses; the second finds all chosen

Work = Callable[[], None]


class Recording(Protocol):
    """Work that has been recorded."""

    def replay(self) -> None:
        """Do it again, on the same addresses, in the order of what else the caller asks of the device."""
        ...


class GraphRecorder(Protocol):
    """Makes recordings of work: of what it asks of a device, not of what it does on the host."""

    def warm_up(self, work: Work) -> None:
        """Do the work in the way that it will be recorded in, so that nothing of it is done for the first time then."""
        ...

    def record(self, work: Work) -> Recording:
        """Record the work without doing it. Raises: RuntimeError where that cannot be; nothing is left of the attempt."""
        ...


class CudaGraphRecorder:
    """Records by stream capture, on a stream of its own, into one pool of memory.

    The recordings share the pool's memory for what lives within a replay. So they must not be replayed at once, and nothing that
    one makes may be read after it: `tests/support/capture_linter.py` sees to the second.
    """

    def __init__(self, device: torch.device) -> None:
        with torch.cuda.device(device):
            self._device = torch.device("cuda", torch.cuda.current_device())
            self._stream = torch.cuda.Stream()
        self._recordings: WeakSet[torch.cuda.CUDAGraph] = WeakSet()
        self._pool: Any = None

    def warm_up(self, work: Work) -> None:
        with torch.cuda.device(self._device):
            caller = torch.cuda.current_stream()
            self._stream.wait_stream(caller)
            try:
                with torch.cuda.stream(self._stream):
                    for _ in range(_WARM_UPS):
                        work()
            finally:
                caller.wait_stream(self._stream)

    def record(self, work: Work) -> Recording:
        if not self._recordings:
            # A pool lives as long as a recording that uses it; the name of a dead one must not be used again.
            self._pool = torch.cuda.graph_pool_handle()
        with torch.cuda.device(self._device):
            # Nothing of this device may be under way, and what the warm-up held is wanted back.
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            # cuBLAS's workspace must lie in the pool, as long as the recording lives, and be known to nobody else.
            torch._C._cuda_clearCublasWorkspaces()
            try:
                with torch.cuda.stream(self._stream):
                    graph = self._capture(work)
            finally:
                torch._C._cuda_clearCublasWorkspaces()
        self._recordings.add(graph)
        return graph

    def _capture(self, work: Work) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        try:
            # Threads that load data may allocate meanwhile.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            work()
            graph.capture_end()
        except BaseException:
            self._end(graph)
            raise
        return graph

    def _end(self, graph: torch.cuda.CUDAGraph) -> None:
        """End a capture that failed: the stream's, and the allocator's, which PyTorch leaves open where the first is an error."""
        # An error again where the stream's capture had become invalid, or was over already.
        with suppress(RuntimeError):
            graph.capture_end()
        try:
            graph.pool()  # known once the capture is over in every respect; then reset() gives it back
        except RuntimeError:
            index = torch.cuda.current_device()
            with suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(index, self._pool)
                torch._C._cuda_releasePool(index, self._pool)
        graph.reset()
        # Recordings that use the pool keep it; the next one begins with another, however this one was left.
        self._recordings.clear()


__all__ = ["CudaGraphRecorder", "GraphRecorder", "Recording", "Work"]
