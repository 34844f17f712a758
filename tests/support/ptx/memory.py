"""Global and shared memory: bounds, alignment, bytes never written, and races.

A race is a conflict between two threads that nothing orders. What orders an access before another one:
  - they are the same thread's;
  - bar.sync between them, in one CTA;
  - bar.warp.sync, or a shuffle, vote or reduction with .sync, between them, in one warp. PTX promises an order of memory
    for bar.warp.sync only; Triton takes a shuffle for one too, and on hardware it is.
Nothing orders two CTAs. Lanes of one warp without any of these are threads like others: no lockstep is assumed. Two
threads that write the same value are let pass, since Triton lets redundant threads do so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.support.ptx.errors import Misaligned, OutOfBounds, PtxError, Race, Unwritten

WARP = 32
SHARED_BASE = 0x400
# A gap of 2^40 bytes between two arrays, and a base that carries into bit 32 within the first 256 bytes, so that an
# address computed in 32 bits goes astray.
GLOBAL_STRIDE, GLOBAL_LOW = 1 << 40, 0xFFFFFF00


@dataclass
class Buffer:
    """An array passed as a pointer.

    Args:
        array: contiguous; the kernel writes into it.
        unwritten: its contents do not exist until the kernel writes them: reading them is an error.
        misaligned_by: bytes to add to a base that is otherwise a multiple of 256.
    """

    array: np.ndarray
    unwritten: bool = False
    misaligned_by: int = 0


@dataclass
class Clock:
    """Time in executed instructions: now, the last barrier of the current CTA, the last synchronisation of each of its warps."""

    num_threads: int
    cta: int = -1
    now: int = 0
    cta_sync: int = 0

    def start_cta(self) -> None:
        self.cta += 1
        self.now += 1
        self.cta_sync = self.now
        self.warp_sync = np.zeros(self.num_threads // WARP, np.int64)

    def barrier(self) -> None:
        self.cta_sync = self.now

    def warp_barrier(self, threads: np.ndarray) -> None:
        self.warp_sync[threads // WARP] = self.now


class Accesses:
    """Who touched each byte since what is ordered: the lowest and the highest thread, over the CTA and over the last warp.

    Warps are runs of threads, so the two tell whether all of the accesses were one warp's, or one thread's.
    """

    def __init__(self, size: int) -> None:
        self.first_cta, self.time, self.lane_time = (np.zeros(size, np.int32) for _ in range(3))
        self.low, self.high, self.lane_low, self.lane_high = (np.zeros(size, np.int32) for _ in range(4))

    def record(self, where: np.ndarray, threads: np.ndarray, clock: Clock, distinct: bool) -> None:
        """Bytes `where` [k] are touched by `threads` [k], now; distinct: no byte is there twice."""
        self.first_cta[where] = np.where(self.first_cta[where] == 0, clock.cta + 1, self.first_cta[where])
        for low, high, time, since in (
            (self.low, self.high, self.time, clock.cta_sync),
            (self.lane_low, self.lane_high, self.lane_time, np.maximum(clock.cta_sync, clock.warp_sync[threads // WARP])),
        ):
            stale = where[time[where] < since]
            low[stale], high[stale] = np.iinfo(np.int32).max, -1
            if distinct:
                low[where], high[where] = np.minimum(low[where], threads), np.maximum(high[where], threads)
            else:
                np.minimum.at(low, where, threads)
                np.maximum.at(high, where, threads)
            time[where] = clock.now

    def unordered(self, where: np.ndarray, threads: np.ndarray, clock: Clock) -> np.ndarray:
        """[k]: whether another thread touched the byte with nothing since then to order it before this access."""
        warps = threads // WARP
        other_cta = (self.first_cta[where] != 0) & (self.first_cta[where] <= clock.cta)
        recent = self.time[where] >= clock.cta_sync
        other_warp = recent & ((self.low[where] // WARP != warps) | (self.high[where] // WARP != warps))
        recent = self.lane_time[where] >= np.maximum(clock.cta_sync, clock.warp_sync[warps])
        other_lane = recent & ((self.lane_low[where] != threads) | (self.lane_high[where] != threads))
        return other_cta | other_warp | other_lane


class Memory:
    """A range of bytes at a base address."""

    def __init__(self, name: str, base: int, data: np.ndarray, clock: Clock, unwritten: bool) -> None:
        self.name, self.base, self.data, self.clock = name, base, data, clock
        self.written = np.full(data.size, not unwritten)
        self.reads, self.writes = Accesses(data.size), Accesses(data.size)
        self.bytes_read = self.bytes_written = 0

    @property
    def end(self) -> int:
        return self.base + self.data.size

    def load(self, addresses: np.ndarray, width: int, threads: np.ndarray) -> np.ndarray:
        """The bytes [k, width] at `addresses` [k], all of them inside, for `threads` [k]."""
        where = self.offsets(addresses, width)
        by = np.repeat(threads, width)
        self.fail(Unwritten, ~self.written[where], where, by, "is read but nothing wrote it")
        self.fail(Race, self.writes.unordered(where, by, self.clock), where, by, "is read while another thread writes it")
        self.reads.record(where, by, self.clock, distinct(addresses))
        self.bytes_read += where.size
        return self.data[where].reshape(-1, width)

    def store(self, addresses: np.ndarray, width: int, threads: np.ndarray, values: np.ndarray) -> None:
        """Write the bytes `values` [k, width]."""
        where = self.offsets(addresses, width)
        by, values = np.repeat(threads, width), values.reshape(-1)
        self.fail(Race, self.reads.unordered(where, by, self.clock), where, by, "is written while another thread reads it")
        clash = self.writes.unordered(where, by, self.clock) & (self.data[where] != values)
        self.data[where] = values
        self.fail(Race, clash | (self.data[where] != values), where, by, "is written by two threads with different values")
        self.writes.record(where, by, self.clock, distinct(addresses))
        self.written[where] = True
        self.bytes_written += where.size

    def offsets(self, addresses: np.ndarray, width: int) -> np.ndarray:
        return ((addresses - np.uint64(self.base)).astype(np.int64)[:, None] + np.arange(width)).reshape(-1)

    def fail(self, error: type[PtxError], bad: np.ndarray, where: np.ndarray, threads: np.ndarray, what: str) -> None:
        if bad.any():
            first = int(np.argmax(bad))
            raise error(f"thread {threads[first]}: byte {where[first]} of {self.name} {what}")


def distinct(addresses: np.ndarray) -> bool:
    """Whether no two accesses, all of one width and aligned, touch the same bytes."""
    return bool(np.unique(addresses).size == addresses.size)


class Space:
    """The memories that one kind of address (global or shared) can reach."""

    def __init__(self, name: str, memories: list[Memory]) -> None:
        self.name = name
        self.memories = sorted(memories, key=lambda memory: memory.base)
        self.bases = np.array([memory.base for memory in self.memories], np.uint64)

    def split(self, addresses: np.ndarray, width: int, threads: np.ndarray) -> list[tuple[Memory, np.ndarray]]:
        """(memory, which of the accesses [k] fall into it) for each memory that is touched, after the checks."""
        misaligned = addresses % np.uint64(width) != 0
        if misaligned.any():
            thread, address = threads[misaligned][0], int(addresses[misaligned][0])
            raise Misaligned(f"thread {thread}: address {self.describe(address)} is no multiple of {width}")
        index = np.searchsorted(self.bases, addresses, side="right") - 1
        parts = []
        for i in np.unique(index):
            chosen = index == i
            memory = self.memories[i] if i >= 0 else None
            outside = chosen if memory is None else chosen & (addresses > np.uint64(memory.end - width))
            if outside.any():
                where = self.describe(int(addresses[outside][0]))
                raise OutOfBounds(f"thread {threads[outside][0]}: {width} bytes at {self.name} address {where}")
            parts.append((memory, chosen))
        return parts

    def describe(self, address: int) -> str:
        """The address, with its distance from the array that it is nearest to."""
        nearest = min(self.memories, key=lambda memory: min(abs(address - memory.base), abs(address - memory.end)), default=None)
        if nearest is None:
            return f"{address:#x}"
        return f"{address:#x} ({nearest.name} {address - nearest.base:+d}, of {nearest.data.size} bytes)"


def place(buffers: dict[str, Buffer], clock: Clock) -> dict[str, Memory]:
    """A Memory for each buffer, far apart; one array passed twice is one memory."""
    placed: dict[tuple[int, int], Memory] = {}
    memories = {}
    for index, (name, buffer) in enumerate(buffers.items(), start=1):
        array = buffer.array
        if not array.flags.c_contiguous:
            raise ValueError(f"{name}: the array has to be contiguous, not of strides {array.strides} for shape {array.shape}")
        key = (array.ctypes.data, array.nbytes)
        if key not in placed:
            data = array.reshape(-1).view(np.uint8)
            base = index * GLOBAL_STRIDE + GLOBAL_LOW + buffer.misaligned_by
            placed[key] = Memory(name, base, data, clock, buffer.unwritten)
        memories[name] = placed[key]
    return memories
