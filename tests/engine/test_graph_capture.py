"""The very functions that are recorded as CUDA graphs do nothing that a capture forbids; and what is planted in them is found."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastcond.config import CONDITIONINGS
from fastcond.diffusion import SAMPLERS, NoiseSchedule, ddim
from fastcond.engine import cuda_graph
from fastcond.engine.cuda_graph import StaticDenoiser
from fastcond.engine.sampling_step import SamplingStep
from fastcond.engine.torch_operations import TorchOperations
from tests.engine.test_composed_tables import TABLES
from tests.engine.test_cuda_graph import COMPOSED, GUIDANCE
from tests.support.capture_linter import CaptureViolation, lint_capture
from tests.support.graph_double import OperationRecorder
from tests.support.graphed import draw, graphed
from tests.support.kernels import kernel  # noqa: F401  (runs every test behind each CPU kernel)
from tests.support.networks import SKIP_BLOCKS, small_unet
from tests.support.schedulers import table_of
from tests.tolerances import BF16_MEAN_LEVELS, GRAY_LEVELS


class LintingRecorder(OperationRecorder):
    """Lints what it is asked to record, first."""

    def record(self, work: Any) -> Any:
        step: SamplingStep = work.func
        assert isinstance(work, partial) and work.func is step and not work.keywords
        lint_capture(work, step.static_tensors)
        step.start()
        return super().record(work)


@pytest.mark.parametrize("composed", COMPOSED, ids=str)
@pytest.mark.parametrize("guidance", GUIDANCE)
@pytest.mark.parametrize("sampler", [*SAMPLERS, "ddim eta 1"])
def test_what_is_recorded_of_every_sampler(sampler: str, guidance: str, composed: dict[str, float]) -> None:
    """With history: dpmpp2m, heun. With noise: ddpm, ddim eta 1."""
    model, recorder = small_unet(), LintingRecorder()
    chosen = ddim(NoiseSchedule.from_config(model.diffusion), 4, eta=1.0) if sampler == "ddim eta 1" else sampler
    draw(model, [0, 3], recorder=recorder, sampler=chosen, **GUIDANCE[guidance], **composed)
    assert recorder.recordings == (2 if guidance == "interval" else 1)


@pytest.mark.parametrize("kind", TABLES)
def test_what_is_recorded_of_tables_that_need_more(kind: str) -> None:
    recorder = LintingRecorder()
    model = small_unet(out_channels=6 if kind.startswith("learned") else 3)
    draw(model, [0, 3], recorder=recorder, sampler=table_of(TABLES[kind], 4), **GUIDANCE["interval"])
    assert recorder.recordings == 2


@pytest.mark.parametrize("resample", ["conv", "resnet"])
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_what_is_recorded_of_every_network(conditioning: str, resample: str) -> None:
    recorder = LintingRecorder()
    draw(small_unet(conditioning=conditioning, resample=resample), [0, 1], recorder=recorder)
    assert recorder.recordings == 1


def test_what_is_recorded_of_skip_blocks() -> None:
    model, recorder = small_unet(**SKIP_BLOCKS).eval(), LintingRecorder()
    images = draw(model, [0, 1], recorder=recorder)
    assert recorder.recordings == 1
    assert np.abs(images.astype(int) - draw(model, [0, 1]).astype(int)).max() <= GRAY_LEVELS


def test_what_is_recorded_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    model, recorder = small_unet().eval(), LintingRecorder()
    expected = draw(model, sampler="dpmpp2m")
    monkeypatch.setattr("tests.support.graphed.graphed", partial(graphed, dtype=torch.bfloat16))
    images = draw(model, recorder=recorder, sampler="dpmpp2m")
    assert recorder.recordings == 1
    (network,) = cuda_graph._forms_of[model].values()
    assert network._network is not None and network._network.dtype == torch.bfloat16
    assert 0 < np.abs(images.astype(int) - expected.astype(int)).mean() < BF16_MEAN_LEVELS


def planted_in_the_network(plant: Callable[[Tensor], Any]) -> Callable[[pytest.MonkeyPatch], None]:
    """Done to a map that a skip joins."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(TorchOperations, "join", lambda self, x, skip: plant(torch.cat([x, skip], dim=1)))

    return apply


def planted_in_the_denoiser(evaluate: Callable[..., Tensor]) -> Callable[[pytest.MonkeyPatch], None]:
    def apply(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(StaticDenoiser, "__call__", evaluate)

    return apply


def row_on_the_host(self: StaticDenoiser, x_t: Tensor, row: Tensor, copies: int = 1) -> Tensor:
    at = self._offset_of_row[int(row)] + self._slots[: len(x_t)]
    return self._network(x_t, self._columns.index_select(0, at))


def the_tables_own_memory(self: StaticDenoiser, x_t: Tensor, row: Tensor, copies: int = 1) -> Tensor:
    """Which belongs to the batch, and is gone at the next."""
    assert self._table is not None
    return self._network(x_t, self._table.window(0)[1].flatten(0, 1).index_select(0, self._slots[: len(x_t)]))


def offsets_made_within(self: StaticDenoiser, x_t: Tensor, row: Tensor, copies: int = 1) -> Tensor:
    assert self._table is not None
    at = self._table.offsets().index_select(0, row) + self._slots[: len(x_t)]
    return self._network(x_t, self._columns.index_select(0, at))


def prepared_within(self: StaticDenoiser, x_t: Tensor, row: Tensor, copies: int = 1) -> Tensor:
    """Right, were it not for the window's memory."""
    self._loaded = -1
    self.prepare(0)
    at = self._offset_of_row.index_select(0, row) + self._slots[: len(x_t)]
    return self._network(x_t, self._columns.index_select(0, at))


KEPT: list[Tensor] = []


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (planted_in_the_network(lambda x: x * x.max().item()), "reads a value on the host: Tensor.item"),
        (planted_in_the_network(lambda x: x if x.max() > 0 else -x), "a host branch on data"),
        (planted_in_the_network(lambda x: KEPT.append(x) or x), "an allocation escapes the step"),
        (planted_in_the_network(lambda x: x + torch.zeros(1)), "makes a tensor on the host"),
        (planted_in_the_network(lambda x: x[x[:, 0, 0, 0] == x[:, 0, 0, 0]]), "depends on data, which needs the host"),
        (planted_in_the_denoiser(row_on_the_host), "reads a value on the host: Tensor.__int__"),
        (planted_in_the_denoiser(the_tables_own_memory), "neither static nor made in the step"),
        (planted_in_the_denoiser(offsets_made_within), "brings data from the host: torch.tensor"),
        (planted_in_the_denoiser(prepared_within), "neither static nor made in the step"),
    ],
)
def test_what_is_planted_is_found(
    monkeypatch: pytest.MonkeyPatch, plant: Callable[[pytest.MonkeyPatch], None], message: str
) -> None:
    model = small_unet()
    with monkeypatch.context() as patch:
        plant(patch)
        with pytest.raises(CaptureViolation, match=message):
            draw(model, [0, 1], recorder=LintingRecorder())
    KEPT.clear()


def test_the_stand_in_tells_what_a_graph_would_not_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The double, too: a value that Python read while recording is that of every replay, so the images are wrong."""
    model = small_unet()
    expected = draw(model, [0, 1])
    monkeypatch.setattr(StaticDenoiser, "__call__", row_on_the_host)
    recorder = OperationRecorder()
    assert (draw(model, [0, 1], recorder=recorder) != expected).any() and recorder.replays == 4
