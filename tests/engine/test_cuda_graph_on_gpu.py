"""Sampling on a GPU: recorded rows against executed ones, weights that change, memory. It has not been run: there was no GPU."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from fastcond.diffusion import SAMPLERS
from fastcond.engine import cuda_graph, generate
from fastcond.engine.graph_recorder import CudaGraphRecorder
from fastcond.engine.torch_operations import TorchOperations
from fastcond.nn import ConditionalUNet
from tests.engine.test_cuda_graph import COMPOSED, GUIDANCE, assert_same_images
from tests.support.networks import small_unet
from tests.support.weight_changes import (
    behind_autograd,
    in_place,
    other_kind_of_module,
    other_parameters,
    other_storage,
)
from tests.tolerances import BF16_MEAN_LEVELS, FP32_MEAN_LEVELS, GRAY_LEVELS

pytestmark = pytest.mark.gpu
LABELS = [0, 1, 2, 3, 1]


@pytest.fixture
def model() -> ConditionalUNet:
    return small_unet().eval().to("cuda")


@pytest.fixture(autouse=True)
def no_warning() -> Iterator[None]:
    """A recording or a compilation that fails is a warning, and no test is to pass without them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*(CUDA graph could not be recorded|torch.compile failed)")
        yield


def draw(model: ConditionalUNet, labels: Any = LABELS, **options: Any) -> np.ndarray:
    return generate(model, labels, **{"steps": 6, "guidance": 2.0, "precision": "fp32", "compile": False, **options})


def executed(model: ConditionalUNet, labels: Any = LABELS, **options: Any) -> np.ndarray:
    """The same kernels, row by row and unrecorded."""

    def refuse(self: CudaGraphRecorder, work: Callable[[], None]) -> Any:
        raise RuntimeError("the test wants none")

    fresh = small_unet().eval().to("cuda")
    fresh.load_state_dict(model.state_dict())
    with pytest.MonkeyPatch.context() as patch, pytest.warns(UserWarning, match="the test wants none"):
        patch.setattr(CudaGraphRecorder, "record", refuse)
        return draw(fresh, labels, **options)


def recordings(model: ConditionalUNet) -> int:
    return sum(len(run.recordings) for form in cuda_graph._forms_of[model].values() for run in form._runs.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("composed", COMPOSED, ids=str)
@pytest.mark.parametrize("guidance", GUIDANCE)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_recorded_rows_give_the_images_of_executed_ones(
    model: ConditionalUNet, sampler: str, guidance: str, composed: dict[str, float], precision: str
) -> None:
    options: dict[str, Any] = {"sampler": sampler, "precision": precision, **GUIDANCE[guidance], **composed}
    expected = executed(model, **options)
    assert_same_images(draw(model, **options), expected)
    assert_same_images(draw(model, **options), expected)
    assert recordings(model) == (2 if guidance == "interval" else 1)


def test_two_samplers_and_two_batch_sizes_in_turn(model: ConditionalUNet) -> None:
    cases: list[dict[str, Any]] = [
        {"sampler": sampler, "labels": LABELS[:images]} for sampler in ("ddpm", "heun") for images in (2, 5)
    ]
    expected = [executed(model, **case) for case in cases]
    for _ in range(3):
        for case, images in zip(cases, expected, strict=True):
            assert_same_images(draw(model, **case), images)
    assert recordings(model) == 4


@pytest.mark.parametrize("compile", [False, True])
def test_bf16_and_compiled_are_near_fp32(model: ConditionalUNet, compile: bool) -> None:
    exact = draw(model, sampler="dpmpp2m")
    for precision in ("fp32", "bf16"):
        images = draw(model, sampler="dpmpp2m", precision=precision, compile=compile)
        assert np.abs(images.astype(int) - exact.astype(int)).mean() < BF16_MEAN_LEVELS


def test_a_cpu_draws_the_same(model: ConditionalUNet) -> None:
    on_cpu = generate(small_unet().eval(), LABELS, steps=6, guidance=2.0)
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        assert np.abs(draw(model).astype(int) - on_cpu.astype(int)).mean() < FP32_MEAN_LEVELS
    finally:
        torch.backends.cudnn.allow_tf32 = tf32


def test_compiled_images_of_any_batch_size_come_from_one_compilation(model: ConditionalUNet) -> None:
    torch.compiler.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for images in (2, 3, 5, 8, 17):
            draw(model, [0] * images, compile=True)


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("change", [in_place, behind_autograd, other_storage, other_parameters], ids=lambda f: f.__name__)
def test_weights_are_the_models_present_ones(
    model: ConditionalUNet, change: Callable[[ConditionalUNet], None], precision: str, compile: bool
) -> None:
    options: dict[str, Any] = {"precision": precision, "compile": compile}
    before = draw(model, **options)
    change(model)
    after = draw(model, **options)
    assert_same_images(after, executed(model, **options))
    assert np.abs(after.astype(int) - before.astype(int)).max() > 10 * GRAY_LEVELS
    assert recordings(model) == 1


def test_another_module_is_recorded_anew(model: ConditionalUNet) -> None:
    before = draw(model)
    other_kind_of_module(model)
    model.to("cuda")
    assert np.abs(draw(model).astype(int) - before.astype(int)).max() > 10 * GRAY_LEVELS
    assert recordings(model) == 1


def test_fifty_calls_take_no_more_memory_than_five(model: ConditionalUNet) -> None:
    used = []
    for call in range(50):
        draw(model, LABELS[: 2 + call % 2], seed=call, guidance=1.0 + call, guidance_interval=(0.0, 0.5))
        torch.cuda.synchronize()
        used.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
    assert used[-1] == used[5], f"(allocated, reserved): {used[5]} bytes after 5 calls, {used[-1]} after 50"


def test_memory_is_given_back_with_the_model() -> None:
    def draw_and_forget() -> None:
        draw(small_unet().eval().to("cuda"), guidance_interval=(0.0, 0.5))

    draw_and_forget()  # libraries keep what they allocate once
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for _ in range(3):
        draw_and_forget()
    gc.collect()
    torch.cuda.empty_cache()
    assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == before


def test_after_a_capture_that_fails_all_goes_on(model: ConditionalUNet, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an operation that a capture forbids, deep in the network."""
    expected = executed(model)
    join = TorchOperations.join
    with monkeypatch.context() as patch:
        patch.setattr(TorchOperations, "join", lambda self, x, skip: join(self, x, skip) + 0 * x.new_tensor(float(x[0, 0, 0, 0])))
        with pytest.warns(UserWarning, match="a CUDA graph could not be recorded"):
            assert_same_images(draw(model), expected)
    assert not torch.cuda.is_current_stream_capturing()
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    torch.randn(1000, device="cuda").sum().item()  # the generator and the allocator are as they were
    assert_same_images(draw(model, LABELS[:3]), expected[:3])
    assert recordings(model) == 1


def test_the_gpu_is_not_waited_for_between_rows(model: ConditionalUNet) -> None:
    def on_step(row: int, first: int, x_0: torch.Tensor) -> None:
        # Before the first row labels are looked up and after the last the images are fetched, which waits.
        torch.cuda.set_sync_debug_mode("error" if row < 5 else "default")

    draw(model)
    try:
        draw(model, on_step=on_step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
