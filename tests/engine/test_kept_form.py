"""What is kept of a network for the next call: nothing is packed twice, no former weight is seen, and it goes with the model."""

from __future__ import annotations

import copy
import gc
import io
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fastcond import Pipeline
from fastcond.engine import generate, generate_batches, kept_form, packed_weights, release
from fastcond.nn import ConditionalUNet
from fastcond.ops import native
from tests.support.kernels import needs_native
from tests.support.networks import perturb, small_unet
from tests.support.weight_changes import CHANGES, other_kind_of_module

pytestmark = needs_native
LABELS = [0, 2, 1]


@pytest.fixture
def model() -> ConditionalUNet:
    return small_unet().eval()


@pytest.fixture
def packings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often weights of a 3x3 convolution were packed: an entry each."""
    packed: list[int] = []
    pack = packed_weights.pack_conv_weight

    def counted(weight: torch.Tensor) -> torch.Tensor:
        packed.append(weight.data_ptr())
        return pack(weight)

    monkeypatch.setattr(packed_weights, "pack_conv_weight", counted)
    return packed


def draw(model: ConditionalUNet, **options: Any) -> np.ndarray:
    return generate(model, LABELS, **{"steps": 2, "guidance": 2.0, **options})


def anew(model: ConditionalUNet) -> np.ndarray:
    """The images of a copy, of which nothing is kept."""
    return draw(copy.deepcopy(model))


def test_weights_are_packed_once(model: ConditionalUNet, packings: list[int]) -> None:
    first = draw(model)
    once = len(packings)
    assert once == len(set(packings)) > 0
    assert np.array_equal(draw(model), first) and np.array_equal(draw(model, batch_size=1), first)
    pipeline = Pipeline(model)
    for seed in (1, 2):
        pipeline(LABELS, num_inference_steps=2, seed=seed)
    assert len(packings) == once


@pytest.mark.parametrize("change", [*CHANGES, other_kind_of_module], ids=lambda f: f.__name__)
def test_changed_weights_are_packed_again(
    model: ConditionalUNet, packings: list[int], change: Callable[[ConditionalUNet], None]
) -> None:
    before = draw(model)
    once = len(packings)
    change(model)
    after = draw(model)
    assert len(packings) == 2 * once
    assert np.array_equal(after, anew(model))
    assert np.array_equal(after, before) == (change is other_kind_of_module), "which no inference form calls"


def test_weights_seen_by_nobody_but_their_memory(model: ConditionalUNet) -> None:
    draw(model)
    model.mid_block.resnets[0].conv1.weight.detach().numpy()[3, 1, 2, 0] += 1.0  # type: ignore[union-attr,index]
    assert np.array_equal(draw(model), anew(model))


def test_every_single_weight_counts(model: ConditionalUNet) -> None:
    library = native.native
    for parameter in model.parameters():
        before = kept_form._state(model, library)
        parameter.data.view(-1)[-1] += 1e-3
        assert kept_form._state(model, library) != before


def test_another_layout_of_the_same_weights(model: ConditionalUNet) -> None:
    before = draw(model)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert np.array_equal(draw(model), before)


def test_weights_that_change_between_two_batches(model: ConditionalUNet) -> None:
    batches = generate_batches(model, LABELS, steps=2, guidance=2.0, batch_size=1)
    first = next(batches)
    assert np.array_equal(first[0], anew(model)[0])
    perturb(model, seed=3)
    assert np.array_equal(next(batches)[0], anew(model)[1])


def test_a_run_within_a_run_has_memory_of_its_own(model: ConditionalUNet) -> None:
    expected, inner = draw(model), []
    outer = draw(model, on_step=lambda *_: inner.append(draw(model, seed=0)))
    assert np.array_equal(outer, expected) and all(np.array_equal(images, expected) for images in inner)


def test_a_model_that_guides_itself(model: ConditionalUNet) -> None:
    expected = draw(copy.deepcopy(model), guide=copy.deepcopy(model))
    assert np.array_equal(draw(model, guide=model), expected)


def test_threads_do_not_share_an_evaluation_s_memory(model: ConditionalUNet) -> None:
    expected = draw(model, steps=20)
    drawn: list[np.ndarray] = []
    start = threading.Barrier(3)

    def run() -> None:
        start.wait()
        drawn.extend(draw(model, steps=20) for _ in range(3))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(drawn) == 9 and all(np.array_equal(images, expected) for images in drawn)


def test_without_the_library_nothing_is_kept(model: ConditionalUNet, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(model)
    monkeypatch.setattr(native, "native", None)
    assert np.array_equal(draw(model), anew(model))
    assert kept_form._kept_of[model]._forms is None


def test_all_is_released_with_the_model() -> None:
    model = small_unet()
    draw(model)
    kept = kept_form._kept_of[model]
    references = [weakref.ref(value) for value in (model, kept, kept._forms)]
    del kept, model
    gc.collect()
    assert not [reference for reference in references if reference() is not None]


def test_all_can_be_released_before(model: ConditionalUNet, packings: list[int]) -> None:
    first = draw(model)
    kept = weakref.ref(kept_form._kept_of[model])
    for _ in range(2):
        release(model)
    assert kept() is None
    packings.clear()
    assert np.array_equal(draw(model), first) and packings


def test_a_drawn_model_is_copied_and_saved_as_before(model: ConditionalUNet) -> None:
    first = draw(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert np.array_equal(draw(other), first)


def test_a_form_made_in_inference_mode_serves_outside(model: ConditionalUNet) -> None:
    with torch.inference_mode():
        first = draw(model)
    assert np.array_equal(draw(model), first)
