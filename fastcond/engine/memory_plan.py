"""Where the intermediate results of a fixed sequence of steps lie: one block of memory, whose parts are used again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 16  # floats: a cache line


@dataclass(frozen=True, eq=False)
class Buffer:
    """`floats` numbers an image, from the first step that names it to the last. Two of a size are two buffers."""

    floats: int


@dataclass(frozen=True)
class MemoryPlan:
    """start: of each buffer, in floats; floats: of all. Both are for one image, and to be multiplied by the number of images."""

    start: dict[Buffer, int]
    floats: int


def plan_memory(steps: Sequence[Sequence[Buffer]]) -> MemoryPlan:
    """Give each buffer a place that no other has while it is needed.

    Args: steps: the buffers of each step, in the order of the steps. Those of one step never overlap.

    A step's buffers take the smallest gap that holds them, so that what was last written is soon written again and stays in the
    processor's caches.
    """
    last = {buffer: i for i, step in enumerate(steps) for buffer in step}
    start: dict[Buffer, int] = {}
    gaps: list[tuple[int, int]] = []  # (start, floats), by start, none beside another
    end = 0
    for i, step in enumerate(steps):
        for buffer in step:
            if buffer in start:
                continue
            size = -(-buffer.floats // ALIGNMENT) * ALIGNMENT
            fitting = [gap for gap in gaps if gap[1] >= size]
            if fitting:
                gap = min(fitting, key=lambda gap: gap[1])
                gaps.remove(gap)
                if gap[1] > size:
                    gaps.append((gap[0] + size, gap[1] - size))
                start[buffer] = gap[0]
            else:
                start[buffer], end = end, end + size
        for buffer in dict.fromkeys(step):
            if last[buffer] == i:
                gaps.append((start[buffer], -(-buffer.floats // ALIGNMENT) * ALIGNMENT))
        gaps = _joined(gaps)
    return MemoryPlan(start, end)


def _joined(gaps: list[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for begin, floats in sorted(gaps):
        if joined and sum(joined[-1]) == begin:
            joined[-1] = (joined[-1][0], joined[-1][1] + floats)
        else:
            joined.append((begin, floats))
    return joined
