"""plan_memory: buffers that are needed at the same time do not overlap, and memory is used again."""

from __future__ import annotations

from itertools import pairwise

import hypothesis
from hypothesis import strategies as st

from fastcond.engine.memory_plan import ALIGNMENT, Buffer, plan_memory


@st.composite
def sequences(draw: st.DrawFn) -> list[list[Buffer]]:
    buffers = [Buffer(draw(st.integers(1, 200))) for _ in range(draw(st.integers(1, 12)))]
    return draw(st.lists(st.lists(st.sampled_from(buffers), max_size=4), max_size=20))


@hypothesis.given(sequences())
def test_buffers_of_one_time_do_not_overlap(steps: list[list[Buffer]]) -> None:
    plan = plan_memory(steps)
    named = {buffer for step in steps for buffer in step}
    assert set(plan.start) == named
    spans = {
        b: range(min(i for i, s in enumerate(steps) if b in s), 1 + max(i for i, s in enumerate(steps) if b in s)) for b in named
    }
    for a in named:
        assert plan.start[a] % ALIGNMENT == 0 and plan.start[a] + a.floats <= plan.floats
        for b in named - {a}:
            if set(spans[a]) & set(spans[b]):
                assert plan.start[a] + a.floats <= plan.start[b] or plan.start[b] + b.floats <= plan.start[a]


def test_a_chain_needs_two_places() -> None:
    """Each step reads what the one before wrote."""
    chain = [Buffer(100) for _ in range(10)]
    plan = plan_memory([[a, b] for a, b in pairwise(chain)])
    assert plan.floats == 2 * 112


def test_what_is_kept_is_not_written_over() -> None:
    kept, others = Buffer(64), [Buffer(64) for _ in range(5)]
    plan = plan_memory([[kept], *([other] for other in others), [kept]])
    assert plan.floats == 128 and all(plan.start[other] != plan.start[kept] for other in others)


def test_gaps_join() -> None:
    """Two neighbours that are free together hold one of their size."""
    a, b, large, end = Buffer(32), Buffer(32), Buffer(64), Buffer(16)
    plan = plan_memory([[a, b, end], [large, end]])
    assert plan.floats == 64 + 16
