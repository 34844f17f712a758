"""Rows as recorded graphs: the same images, recorded once a kind of batch, and what happens where that fails.

Here the graphs are a stand-in's, on the CPU; test_cuda_graph_on_gpu.py has the real ones.
"""

from __future__ import annotations

import gc
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from fastcond.diffusion import SAMPLERS, DynamicThreshold, LearnedNoise, NoiseSchedule, ddim, ddpm, dpmpp2m, heun
from fastcond.engine import cuda_graph, generate
from fastcond.engine.conditioning_table import conditioning_sites
from fastcond.engine.cuda_graph import MOST_KINDS, Kind
from fastcond.engine.executor import SamplingBatch
from fastcond.nn import ConditionalUNet
from tests.engine.test_composed_tables import TABLES
from tests.support.graph_double import OperationRecorder
from tests.support.graphed import LABELS, STEPS, as_on_a_gpu, draw
from tests.support.networks import small_unet
from tests.support.schedulers import table_of
from tests.tolerances import BF16_MEAN_LEVELS, GRAY_LEVELS

GUIDANCE: dict[str, dict[str, Any]] = {
    "off": {"guidance": 1.0},
    "on": {"guidance": 2.0},
    "interval": {"guidance": 2.0, "guidance_interval": (0.25, 0.75)},
}
COMPOSED: list[dict[str, float]] = [{}, {"guidance_rescale": 0.7}, {"dynamic_threshold": 0.9}]


@pytest.fixture
def model() -> ConditionalUNet:
    return small_unet().eval()


@pytest.fixture
def recorder() -> OperationRecorder:
    return OperationRecorder()


@pytest.fixture(autouse=True)
def no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def assert_same_images(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.shape == expected.shape
    assert np.abs(actual.astype(int) - expected.astype(int)).max() <= GRAY_LEVELS


@pytest.mark.parametrize("composed", COMPOSED, ids=str)
@pytest.mark.parametrize("guidance", GUIDANCE)
@pytest.mark.parametrize("sampler", [*SAMPLERS, "ddim eta 1"])
def test_the_images_are_those_of_the_plain_way(
    model: ConditionalUNet, recorder: OperationRecorder, sampler: str, guidance: str, composed: dict[str, float]
) -> None:
    """In batches of 2, 2 and 1, so that each kind of batch is seen, and the first of them twice."""
    chosen = ddim(NoiseSchedule.from_config(model.diffusion), STEPS, eta=1.0) if sampler == "ddim eta 1" else sampler
    options: dict[str, Any] = {"sampler": chosen, **GUIDANCE[guidance], **composed}
    rows: list[tuple[int, int]] = []
    images = draw(model, recorder=recorder, batch_size=2, on_step=lambda row, first, _: rows.append((row, first)), **options)
    assert_same_images(images, draw(model, **options))
    assert recorder.recordings == recorder.warm_ups == (4 if guidance == "interval" else 2)
    assert recorder.replays == len(rows) and rows[0] == (0, 0) and rows[-1][1] == 4, "every row is a replay"


@pytest.mark.parametrize("kind", TABLES)
def test_tables_that_need_more_than_a_rows_arithmetic(recorder: OperationRecorder, kind: str) -> None:
    model = small_unet(out_channels=6 if kind.startswith("learned") else 3).eval()
    if kind == "learned":  # variances, which must be positive: without it every image is nan
        with torch.no_grad():
            model.conv_out.weight[3:].mul_(1e-3)
            model.conv_out.bias[3:].fill_(0.02)
    for steps in (6, 9):
        table = table_of(TABLES[kind], steps)
        assert_same_images(draw(model, recorder=recorder, sampler=table), draw(model, sampler=table))
    assert recorder.recordings == 1 and recorder.replays == 15


def test_noise_of_pytorchs_generators_is_drawn_between_rows_that_are_executed(
    model: ConditionalUNet, recorder: OperationRecorder
) -> None:
    assert_same_images(draw(model, recorder=recorder, rng="torch"), draw(model, rng="torch"))
    assert recorder.recordings == recorder.warm_ups == 0


def test_x_0_is_shown_after_each_row(model: ConditionalUNet, recorder: OperationRecorder) -> None:
    seen: dict[bool, list[torch.Tensor]] = {}
    for graphed in (False, True):
        seen[graphed] = []
        draw(model, recorder=recorder if graphed else None, on_step=lambda _, __, x_0, g=graphed: seen[g].append(x_0.clone()))
    assert len(seen[True]) == STEPS
    for ours, plain in zip(seen[True], seen[False], strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": [3, 3, 0, 0, 0]},
        {"seed": 8},
        {"indices": [9, 8, 7, 6, 2**32 - 1]},
        {"guidance": [0.0, 1.0, 2.5, -1.0, 7.0]},
        {"steps": 7},
        {"steps": 128},
        {"sampler": "ddpm", "guidance_interval": (0.0, 1.0)},
    ],
    ids=str,
)
def test_what_differs_between_two_batches_of_a_kind_is_copied_and_not_recorded(
    model: ConditionalUNet, recorder: OperationRecorder, changes: dict[str, Any]
) -> None:
    draw(model, recorder=recorder)
    assert recorder.recordings == 1
    assert_same_images(draw(model, recorder=recorder, **changes), draw(model, **changes))
    assert recorder.recordings == 1
    assert_same_images(draw(model, recorder=recorder), draw(model))


@pytest.mark.parametrize(
    "changes",
    [
        {"sampler": "ddim"},
        {"sampler": "dpmpp2m"},
        {"steps": 129},
        {"batch_size": 3},
        {"guidance": 1.0},
        {"guidance_rescale": 0.5},
        {"dynamic_threshold": 0.5},
    ],
    ids=str,
)
def test_what_is_part_of_a_recording_is_recorded_anew(
    model: ConditionalUNet, recorder: OperationRecorder, changes: dict[str, Any]
) -> None:
    draw(model, recorder=recorder)
    assert_same_images(draw(model, recorder=recorder, **changes), draw(model, **changes))
    assert recorder.recordings > 1


def kind(images: int, table: Any, largest_label: int = 10, entry_bytes: int = 1000, **options: Any) -> Kind:
    labels, seeds = torch.zeros(2 * images, dtype=torch.int64), torch.zeros(images, 2, dtype=torch.int64)
    batch = SamplingBatch(table, [True] * table.num_rows, labels, seeds, torch.ones(images), **options)
    return Kind.of(batch, largest_label, entry_bytes)


def test_kinds() -> None:
    schedule = NoiseSchedule.linear()
    base = kind(4, ddpm(schedule, 50))
    assert base == kind(4, ddpm(schedule, 128)), "room for the rows is what counts"
    assert base != kind(4, ddpm(schedule, 129)) == kind(4, ddpm(schedule, 256))
    assert kind(4, dpmpp2m(schedule, 50)) == kind(4, heun(schedule, 50)), "both keep history and draw no noise"
    assert len({base, kind(5, ddpm(schedule, 50)), kind(4, ddim(schedule, 50)), kind(4, dpmpp2m(schedule, 50))}) == 4
    assert len({base, *(kind(4, ddpm(schedule, 50), **options) for options in COMPOSED[1:])}) == 3
    others: list[dict[str, Any]] = [
        {"timesteps": torch.zeros(50)},
        {"initial_scale": 2.0},
        {"threshold": DynamicThreshold(0.9)},
        {"learned_noise": LearnedNoise(torch.zeros(50, 3), is_variance=True)},
        {"learned_noise": LearnedNoise(torch.zeros(50, 3), is_variance=False)},
    ]
    tables = [replace(ddpm(schedule, 50), **changes) for changes in others]
    assert len({base, *(kind(4, table) for table in tables)}) == 6
    for table in tables:
        room = kind(4, table).table(torch.device("cpu"))
        for field in fields(table):
            given, kept = getattr(table, field.name), getattr(room, field.name)
            if isinstance(given, torch.Tensor):
                assert kept.dtype == given.dtype and kept.shape == (128, *given.shape[1:])
            elif isinstance(given, LearnedNoise):
                assert kept.is_variance is given.is_variance and kept.coefficients.shape == (128, 3)
            else:
                assert kept == given
    assert base.entries == 128 * 5 and kind(64, ddpm(schedule, 50)).entries == 128 * 11, "labels that there can be, and the null"
    assert kind(4, ddpm(schedule, 50), entry_bytes=2**20).entries == 64, "no more than the bytes allow"
    assert kind(4, ddpm(schedule, 50), entry_bytes=2**40).entries == 5, "but one row"


def test_kept_kinds_are_bounded_and_the_oldest_goes(model: ConditionalUNet, recorder: OperationRecorder) -> None:
    for images in (1, 2, *range(1, MOST_KINDS + 2)):
        draw(model, [0] * images, recorder=recorder, steps=1)
    (forms,) = [forms for known, forms in cuda_graph._forms_of.items() if known is model]
    (network,) = forms.values()
    assert [kept.images for kept in network.kinds] == list(range(2, MOST_KINDS + 2))
    recorded = recorder.recordings
    draw(model, [0] * 2, recorder=recorder, steps=1)
    assert recorder.recordings == recorded and network.kinds[-1].images == 2
    draw(model, [0], recorder=recorder, steps=1)
    assert recorder.recordings == recorded + 1
    assert 3 not in [kept.images for kept in network.kinds], "2 was used after it"


@pytest.mark.parametrize("guidance", ["on", "interval"])
@pytest.mark.parametrize("fail_at", [0, 3, 60])
def test_where_recording_fails_rows_are_executed_and_one_line_says_so(
    model: ConditionalUNet, fail_at: int, guidance: str
) -> None:
    recorder = OperationRecorder(fail_at)
    with pytest.warns(UserWarning, match="a CUDA graph could not be recorded") as caught:
        images = draw(model, recorder=recorder, **GUIDANCE[guidance])
    assert [str(warning.message) for warning in caught] == [
        "a CUDA graph could not be recorded (operation not permitted when stream is capturing second line); sampling goes on "
        "without one"
    ]
    assert_same_images(images, draw(model, **GUIDANCE[guidance]))
    assert_same_images(draw(model, recorder=recorder, seed=1), draw(model, seed=1))
    assert recorder.recordings == recorder.replays == 0 and recorder.warm_ups == 1, "it is not tried again"
    recorder.fail_at = None
    assert_same_images(draw(model, [0, 1], recorder=recorder), draw(model, [0, 1]))
    assert recorder.recordings == 1, "another kind of batch is"


def test_of_two_recordings_the_one_that_failed_is_executed(model: ConditionalUNet, recorder: OperationRecorder) -> None:
    """The unguided rows are recorded first."""
    record = recorder.record

    def fail_the_second(work: Callable[[], None]) -> Any:
        recorder.fail_at = None if recorder.recordings == 0 else 5
        return record(work)

    recorder.record = fail_the_second  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match="could not be recorded"):
        images = draw(model, recorder=recorder, **GUIDANCE["interval"])
    assert_same_images(images, draw(model, **GUIDANCE["interval"]))
    assert recorder.recordings == 1 and recorder.replays == 2


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("of a GPU"), ValueError("anything")])
def test_an_error_in_the_warm_up_is_the_callers(model: ConditionalUNet, recorder: OperationRecorder, error: Exception) -> None:
    warm_up = recorder.warm_up

    def fail(work: Callable[[], None]) -> None:
        raise error

    recorder.warm_up = fail  # type: ignore[method-assign]
    with pytest.raises(type(error)):
        draw(model, recorder=recorder)
    recorder.warm_up = warm_up  # type: ignore[method-assign]
    assert_same_images(draw(model, recorder=recorder), draw(model))
    assert recorder.recordings == 1


def test_a_run_that_is_left_in_the_middle_holds_nothing(recorder: OperationRecorder) -> None:
    def stop(row: int, *_: Any) -> None:
        if row == 1:
            raise KeyboardInterrupt

    model = small_unet()
    with pytest.raises(KeyboardInterrupt):
        draw(model, recorder=recorder, on_step=stop)
    assert_same_images(draw(model, recorder=recorder), draw(model))
    assert recorder.recordings == 1
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


def test_a_run_within_a_run_has_buffers_of_its_own(model: ConditionalUNet, recorder: OperationRecorder) -> None:
    inner: list[np.ndarray] = []

    def on_step(row: int, *_: Any) -> None:
        if row == 1:
            inner.append(draw(model, seed=5, recorder=recorder))

    assert_same_images(draw(model, recorder=recorder, on_step=on_step), draw(model))
    assert_same_images(inner[0], draw(model, seed=5))
    assert recorder.recordings == 1


def test_threads_do_not_share_buffers(model: ConditionalUNet, recorder: OperationRecorder) -> None:
    both_are_under_way, drawn = threading.Barrier(2, timeout=60), dict[int, np.ndarray]()

    def work(seed: int) -> None:
        drawn[seed] = draw(model, seed=seed, on_step=lambda row, *_: both_are_under_way.wait() if row == 1 else None)

    with as_on_a_gpu(recorder):
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for seed in range(2):
        assert_same_images(drawn[seed], draw(model, seed=seed))
    assert recorder.recordings == 1


def test_a_table_that_does_not_fit_comes_in_windows(
    model: ConditionalUNet, recorder: OperationRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    width = sum(site.width for site in conditioning_sites(model))
    for rows in (1, 3):
        monkeypatch.setattr(cuda_graph, "_TABLE_BYTES", rows * 4 * 4 * width)
        options: dict[str, Any] = {"sampler": "heun", "steps": 7}
        assert_same_images(draw(model, recorder=recorder, **options), draw(model, **options))
        assert_same_images(draw(model, [0, 0, 0, 0, 0], recorder=recorder, **options), draw(model, [0, 0, 0, 0, 0], **options))


def test_windows_of_a_model_in_16_bits_fit_too(recorder: OperationRecorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the entries in the same bytes."""
    model = small_unet().eval().bfloat16()
    monkeypatch.setattr(cuda_graph, "_TABLE_BYTES", 8 * 4 * sum(site.width for site in conditioning_sites(model)))
    images = draw(model, recorder=recorder, sampler="dpmpp2m", steps=50)
    expected = draw(small_unet().eval(), sampler="dpmpp2m", steps=50)
    assert np.abs(images.astype(int) - expected.astype(int)).mean() < BF16_MEAN_LEVELS


def test_the_callers_modes_do_not_matter(model: ConditionalUNet, recorder: OperationRecorder) -> None:
    expected = draw(model)
    with torch.inference_mode():
        assert_same_images(draw(model, recorder=recorder), expected)
    assert_same_images(draw(model, recorder=recorder), expected)
    with torch.enable_grad():
        assert_same_images(draw(model, recorder=recorder), expected)
    with torch.inference_mode():
        assert_same_images(draw(model, recorder=recorder, seed=4), draw(model, seed=4))
    assert recorder.recordings == 1
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_networks_that_scale_their_input(recorder: OperationRecorder) -> None:
    model = small_unet(center_input=True).eval()
    assert_same_images(draw(model, recorder=recorder), draw(model))


def test_a_cpu_is_given_no_graphs(model: ConditionalUNet) -> None:
    generate(model, LABELS, steps=2)
    assert model not in cuda_graph._forms_of
