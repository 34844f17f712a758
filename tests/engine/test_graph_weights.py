"""Recorded graphs go by the model's present weights, whatever became of them, and are released with the model or before."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastcond.engine import cuda_graph, release
from fastcond.nn import ConditionalUNet
from tests.engine.test_cuda_graph import assert_same_images
from tests.support.graph_double import OperationRecorder
from tests.support.graphed import draw
from tests.support.networks import small_unet
from tests.support.weight_changes import CHANGES, other_kind_of_module
from tests.tolerances import GRAY_LEVELS


@pytest.fixture
def model() -> ConditionalUNet:
    return small_unet().eval()


@pytest.fixture
def recorder() -> OperationRecorder:
    return OperationRecorder()


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_weights_are_the_models_present_ones(
    model: ConditionalUNet, recorder: OperationRecorder, change: Callable[[ConditionalUNet], None]
) -> None:
    before = draw(model, recorder=recorder)
    change(model)
    after = draw(model, recorder=recorder)
    assert_same_images(after, draw(model))
    assert np.abs(after.astype(int) - before.astype(int)).max() > 10 * GRAY_LEVELS
    assert recorder.recordings == 1


def in_float64(model: ConditionalUNet) -> None:
    model.double()


@pytest.mark.parametrize("change", [other_kind_of_module, in_float64], ids=lambda f: f.__name__)
def test_a_network_that_is_another_one_is_recorded_anew(
    model: ConditionalUNet, recorder: OperationRecorder, change: Callable[[ConditionalUNet], None]
) -> None:
    before = draw(model, recorder=recorder)
    change(model)
    after = draw(model, recorder=recorder)
    assert recorder.recordings == 2
    if change is other_kind_of_module:
        assert np.abs(after.astype(int) - before.astype(int)).max() > 10 * GRAY_LEVELS
    else:
        assert_same_images(after, before)


def test_all_is_released_with_the_model(recorder: OperationRecorder) -> None:
    model = small_unet()
    draw(model, recorder=recorder)
    forms = cuda_graph._forms_of[model]
    run = next(iter(next(iter(forms.values()))._runs.values()))
    kept = [weakref.ref(value) for value in (model, run, *run.recordings.values(), *run.static_tensors().values())]
    del forms, run, model
    gc.collect()
    assert not [reference for reference in kept if reference() is not None]


def test_all_can_be_released_before(model: ConditionalUNet, recorder: OperationRecorder) -> None:
    draw(model, recorder=recorder)
    run = weakref.ref(next(iter(next(iter(cuda_graph._forms_of[model].values()))._runs.values())))
    for _ in range(2):
        release(model)
    gc.collect()
    assert run() is None and model not in cuda_graph._forms_of
    assert_same_images(draw(model, recorder=recorder), draw(model))


def test_a_batch_that_cannot_be_loaded_keeps_no_model_alive(recorder: OperationRecorder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, row: int) -> None:
        raise MemoryError

    model = small_unet()
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(cuda_graph.StaticDenoiser, "prepare", fail)
        draw(model, recorder=recorder)
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None
