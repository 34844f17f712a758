"""`generate` as on a GPU, but on the CPU: weights of its own, static buffers, recordings by a stand-in for CUDA graphs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import numpy as np
import torch

from fastcond.engine import cuda_graph, generate
from fastcond.engine.cuda_graph import GraphExecutor, GraphRecorder
from fastcond.nn import ConditionalUNet

LABELS = [0, 1, 2, 3, 1]  # 3 is the null label
STEPS = 4


def graphed(model: ConditionalUNet, recorder: GraphRecorder, dtype: torch.dtype = torch.float32) -> GraphExecutor:
    return cuda_graph.graph_executor(model, dtype, compiled=False, recorder=lambda device: recorder)


@contextmanager
def as_on_a_gpu(recorder: GraphRecorder) -> Iterator[None]:
    """Within, `generate` records and replays."""
    with mock.patch.object(
        sys.modules["fastcond.engine.generate"], "_executor", lambda model, *_, **__: graphed(model, recorder)
    ):
        yield


def draw(model: ConditionalUNet, labels: Any = LABELS, recorder: GraphRecorder | None = None, **options: Any) -> np.ndarray:
    """`generate`; with a recorder as a GPU would."""
    with nullcontext() if recorder is None else as_on_a_gpu(recorder):
        return generate(model, labels, **{"steps": STEPS, "guidance": 2.0, **options})
