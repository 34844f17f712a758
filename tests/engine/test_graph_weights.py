"""Recorded graphs go by the model's present weights, whatever became of them, and are released with the model or before."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fastcond.engine import cuda_graph, release_graphs
from fastcond.nn import ConditionalUNet
from tests.engine.test_cuda_graph import assert_same_images
from tests.support.graph_double import OperationRecorder
from tests.support.graphed import draw
from tests.support.networks import perturb, small_unet
from tests.tolerances import GRAY_LEVELS


@pytest.fixture
def model() -> ConditionalUNet:
    return small_unet().eval()


@pytest.fixture
def recorder() -> OperationRecorder:
    return OperationRecorder()


def in_place(model: ConditionalUNet) -> None:
    perturb(model, seed=3)


def optimizer_step(model: ConditionalUNet) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.int64)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def behind_autograd(model: ConditionalUNet) -> None:
    """Which counts no version."""
    versions = [parameter._version for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.data.mul_(1.1)
    assert versions == [parameter._version for parameter in model.parameters()]


def other_storage(model: ConditionalUNet) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.1


def other_parameters(model: ConditionalUNet) -> None:
    model.load_state_dict({name: value * 1.1 for name, value in model.state_dict().items()}, assign=True)


def other_module(model: ConditionalUNet) -> None:
    other = nn.Conv2d(8, 3, 3, padding=1)
    perturb(other, seed=5)
    model.conv_out = other


@pytest.mark.parametrize(
    "change", [in_place, optimizer_step, behind_autograd, other_storage, other_parameters, other_module], ids=lambda f: f.__name__
)
def test_weights_are_the_models_present_ones(
    model: ConditionalUNet, recorder: OperationRecorder, change: Callable[[ConditionalUNet], None]
) -> None:
    before = draw(model, recorder=recorder)
    change(model)
    after = draw(model, recorder=recorder)
    assert_same_images(after, draw(model))
    assert np.abs(after.astype(int) - before.astype(int)).max() > 10 * GRAY_LEVELS
    assert recorder.recordings == 1


class Negating(nn.Conv2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return -super().forward(input)


def other_kind_of_module(model: ConditionalUNet) -> None:
    """The same parameters by name and shape, used in another way."""
    other = Negating(8, 3, 3, padding=1)
    other.load_state_dict(model.conv_out.state_dict())
    model.conv_out = other


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
        release_graphs(model)
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
