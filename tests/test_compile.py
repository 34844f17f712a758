"""torch.compile takes a whole training step and a whole sampling step: one graph, for every batch size, as in eager mode.

On a CPU, PyTorch itself parts batches at 16: a convolution then chooses its library by whether there are as many images. And it
gives a batch of 1 a graph of its own. So the batches here begin at 16.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from fastcond.diffusion import NoiseSchedule, StepTable, ddim, ddpm, diffusion_loss, loss_weights
from fastcond.nn import ConditionalUNet
from fastcond.ops import diffusion_step
from tests.support.networks import SMALL, small_unet
from tests.support.samplers import seeds_of
from tests.tolerances import assert_network_close

BATCHES = (16, 17, 20, 24, 31, 32, 48, 63, 100, 256)
# What takes long is the tracing, layer by layer.
ONE_LEVEL: dict[str, Any] = {"attention_resolutions": (), "block_out_channels": (8,)}
SCHEDULE = NoiseSchedule.linear()
TrainingStep = Callable[..., Tensor]
SamplingStep = Callable[..., tuple[Tensor, Tensor]]

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="inductor needs a C++ compiler")


@pytest.fixture(autouse=True)
def one_graph() -> Iterator[None]:
    """Compile anew in each test, and let a second compilation of the same function be an error."""
    torch.compiler.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch.compiler.reset()


def training_step(model: ConditionalUNet) -> TrainingStep:
    """(x_0, label, timestep, eps) -> loss; `Trainer` does the same."""
    alphas_cumprod, weights = SCHEDULE.alphas_cumprod.float(), loss_weights(SCHEDULE, "eps", "min_snr").float()

    def step(x_0: Tensor, label: Tensor, timestep: Tensor, eps: Tensor) -> Tensor:
        return diffusion_loss(model, x_0, label, timestep, eps, alphas_cumprod=alphas_cumprod, weights=weights, prediction="eps")

    return step


def sampling_step(model: ConditionalUNet, table: StepTable) -> SamplingStep:
    """(buffer, labels of both halves, row, seeds, guidance, x_0) -> (buffer, x_0), both written; `generate` does the same."""

    def step(
        buffer: Tensor, both_labels: Tensor, row: Tensor, seeds: Tensor, guidance: Tensor, x_0: Tensor
    ) -> tuple[Tensor, Tensor]:
        timestep = table.timesteps[row]
        out_cond, out_uncond = model(buffer, timestep.expand(buffer.shape[0]), both_labels).chunk(2)
        x = buffer[: seeds.shape[0]]
        return diffusion_step(x, out_cond, out_uncond, table, row, seeds=seeds, guidance=guidance, out=buffer, out_x_0=x_0)

    return step


def training_inputs(batch: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(batch)
    x_0, eps = (torch.randn(batch, 3, 8, 8, generator=generator) for _ in range(2))
    return [x_0, torch.arange(batch) % 3, torch.arange(batch) * 29 % 1000, eps]


def sampling_inputs(batch: int, row: int, guidance: float = 2.5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(batch)
    x = torch.randn(batch, 3, 8, 8, generator=generator).contiguous(memory_format=torch.channels_last)
    label = torch.arange(batch) % 3
    both_labels = torch.cat([label, torch.full_like(label, SMALL["num_classes"])])
    return [
        torch.cat([x, x]),
        both_labels,
        torch.tensor([row]),
        seeds_of(batch),
        torch.full((batch,), guidance),
        torch.zeros_like(x),
    ]


def any_batch(tensors: list[Tensor]) -> list[Tensor]:
    """Tell the compiler that the first axis varies, which it must not answer by fixing it."""
    for tensor in tensors:
        if len(tensor) > 1:
            torch._dynamo.mark_dynamic(tensor, 0)
    return tensors


def loss_and_gradients(step: TrainingStep, model: ConditionalUNet, batch: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The loss, and all gradients in one row: some are 0 but for rounding, so errors are relative to the largest of all."""
    model.zero_grad()
    loss = step(*batch)
    loss.backward()
    return loss.detach(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("changes", [{}, {**ONE_LEVEL, "conditioning": "scale_shift"}, {**ONE_LEVEL, "conditioning": "bias"}])
def test_a_training_step_is_one_graph_for_every_batch_size(changes: dict[str, Any]) -> None:
    model = small_unet(**changes)
    step, backend = training_step(model), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, backend=backend, fullgraph=True)
    for batch in BATCHES:
        actual = loss_and_gradients(compiled, model, any_batch(training_inputs(batch)))
        if batch in BATCHES[::4]:
            for value, expected in zip(actual, loss_and_gradients(step, model, training_inputs(batch)), strict=True):
                assert_network_close(value, expected)
    assert backend.frame_count == 1


def test_a_training_step_of_native_kernels_is_one_graph_for_every_batch_size() -> None:
    """Channels enough for conv3x3's, tokens and channels enough for linear's convolution."""
    changes: dict[str, Any] = {"block_out_channels": (32,), "attention_resolutions": (8,), "norm_num_groups": 8}
    model = small_unet(**changes)
    step, backend = training_step(model), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, backend=backend, fullgraph=True)
    for batch in BATCHES[::3]:
        actual = loss_and_gradients(compiled, model, any_batch(training_inputs(batch)))
        for value, expected in zip(actual, loss_and_gradients(step, model, training_inputs(batch)), strict=True):
            assert_network_close(value, expected)
    assert backend.frame_count == 1


@needs_compiler
def test_inductor_trains_with_native_kernels() -> None:
    model = small_unet(block_out_channels=(32,), attention_resolutions=(8,), norm_num_groups=8)
    step = training_step(model)
    compiled = loss_and_gradients(torch.compile(step, fullgraph=True), model, training_inputs(3))
    for value, expected in zip(compiled, loss_and_gradients(step, model, training_inputs(3)), strict=True):
        assert_network_close(value, expected)


@pytest.mark.parametrize(("sampler", "changes"), [(ddpm, {}), (ddim, ONE_LEVEL)])
def test_a_sampling_step_is_one_graph_for_every_batch_size_and_row(
    sampler: Callable[..., StepTable], changes: dict[str, Any]
) -> None:
    step = sampling_step(small_unet(**changes).eval(), sampler(SCHEDULE, 4))
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, backend=backend, fullgraph=True)
    with torch.no_grad():
        for number, batch in enumerate(BATCHES):
            actual = compiled(*any_batch(sampling_inputs(batch, row=number % 4)))
            for value, expected in zip(actual, step(*sampling_inputs(batch, row=number % 4)), strict=True):
                assert_network_close(value, expected)
    assert backend.frame_count == 1


@needs_compiler
def test_inductor_trains_as_eager_does() -> None:
    model = small_unet(**ONE_LEVEL)
    step = training_step(model)
    compiled = loss_and_gradients(torch.compile(step, fullgraph=True), model, training_inputs(3))
    for value, expected in zip(compiled, loss_and_gradients(step, model, training_inputs(3)), strict=True):
        assert_network_close(value, expected)


@needs_compiler
def test_inductor_samples_as_eager_does() -> None:
    step = sampling_step(small_unet(**ONE_LEVEL).eval(), ddpm(SCHEDULE, 4))
    with torch.no_grad():
        # A row and a guidance that make no more of the network's rounding than it is.
        compiled = torch.compile(step, fullgraph=True)(*sampling_inputs(3, row=2, guidance=1.5))
        for value, expected in zip(compiled, step(*sampling_inputs(3, row=2, guidance=1.5)), strict=True):
            assert_network_close(value, expected)
