"""Rows of sampling as CUDA graphs: recorded once for a kind of batch, then one launch a row.

What is recorded is a row (`SamplingStep`), twice at most: with both halves of a guided batch, and with the conditional half
alone. The row index lies in device memory and every recording ends with adding 1 to it, so one serves all rows of all runs.

Not the whole loop in one graph: that would be rows times some hundred kernels, recorded anew for every number of steps and every
interval of guidance, and nothing could look at x_0 between two rows or stop there. What it would save is a launch a row, which
the host does while the GPU is at the row before.

Everything that differs between two batches of a kind is copied into buffers first: weights, labels, the conditioning table,
seeds, guidance, coefficients. Noise is a function of (seed, index, row), so no generator's state takes part.
"""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from fastcond.diffusion import DynamicThreshold, LearnedNoise, StepTable
from fastcond.engine.compile import CompiledUNet
from fastcond.engine.conditioning_table import ConditioningTable
from fastcond.engine.executor import EagerExecutor, Run, SamplingBatch, image_shape
from fastcond.engine.frozen_unet import Ends
from fastcond.engine.graph_recorder import CudaGraphRecorder, GraphRecorder, Recording
from fastcond.engine.sampling_step import SamplingStep
from fastcond.nn import ConditionalUNet

MOST_KINDS = 8  # whose buffers and recordings a network keeps
_TABLE_BYTES = 64 * 2**20  # of the conditioning table that is held at a time
_FEWEST_ROWS = 128  # room for a sampler's rows is this, or the next power of two


@dataclass(frozen=True)
class Kind:
    """What two batches must have in common to share buffers and recordings; one network's, which fixes image shape and dtype.

    Attributes:
        images: B. rows: room for rows of a sampler. entries: room for entries of the conditioning table, [columns] each.
        timesteps: their dtype. learned_noise: whether the sampler's is a variance, None where it has none.
        keeps_history, draws_noise, initial_scale, threshold: the sampler's. guidance_rescale, dynamic_threshold: the run's.
    """

    images: int
    rows: int
    entries: int
    timesteps: torch.dtype
    keeps_history: bool
    draws_noise: bool
    initial_scale: float
    threshold: DynamicThreshold | None
    learned_noise: bool | None
    guidance_rescale: float
    dynamic_threshold: float | None

    @classmethod
    def of(cls, batch: SamplingBatch, largest_label: int, entry_bytes: int) -> Kind:
        """The kind of a batch. Which labels the images have, and how many there are of them, is no part of it."""
        images, table = len(batch.seeds), batch.table
        rows = max(_FEWEST_ROWS, 1 << (table.num_rows - 1).bit_length())
        labels = min(images, largest_label) + 1
        entries = min(rows * labels, max(labels, _TABLE_BYTES // entry_bytes))
        return cls(
            images,
            rows,
            entries,
            table.timesteps.dtype,
            table.keeps_history,
            table.draws_noise,
            table.initial_scale,
            table.threshold,
            None if table.learned_noise is None else table.learned_noise.is_variance,
            batch.guidance_rescale,
            batch.dynamic_threshold,
        )

    def table(self, device: torch.device) -> StepTable:
        """Room for a sampler's rows, as many as there may be of this kind."""
        learned = self.learned_noise
        return StepTable(
            torch.zeros(self.rows, 8, dtype=torch.float32, device=device),
            torch.zeros(self.rows, dtype=self.timesteps, device=device),
            self.keeps_history,
            self.draws_noise,
            self.initial_scale,
            self.threshold,
            None if learned is None else LearnedNoise(torch.zeros(self.rows, 3, dtype=torch.float32, device=device), learned),
        )


class StaticDenoiser:
    """A `Denoiser` over buffers that stay where they are: its calls read nothing else, and the network's weights.

    Args: timesteps: of the run that is loaded, the buffer of a kind's `table`.
    """

    def __init__(self, network: CompiledUNet, kind: Kind, timesteps: Tensor) -> None:
        device = timesteps.device
        self._network = network
        self._columns = torch.zeros(kind.entries, network.width, dtype=torch.float32, device=device)
        self._offset_of_row = torch.zeros(kind.rows, dtype=torch.int64, device=device)
        self._slots = torch.zeros(2 * kind.images, dtype=torch.int64, device=device)
        self._timesteps, self._ends = timesteps, Ends(network.config, timesteps)
        self._table: ConditioningTable | None = None
        self._loaded = -1

    def load(self, table: ConditioningTable, labels: Tensor) -> None:
        """Take another run's table and labels, int64 [2B], ready for row 0."""
        self._table, self._loaded = table, -1
        self._slots.copy_(table.slots(labels))
        self._offset_of_row[: table.num_rows].copy_(table.offsets())
        self.prepare(0)

    def unload(self) -> None:
        """Let go of the table, and with it of the model."""
        self._table = None

    def prepare(self, row: int) -> None:
        """Have the window of the table in place that this row reads. The host knows the row, so it waits for nothing."""
        assert self._table is not None, "a run is loaded first"
        first, window = self._table.window(row)
        if first != self._loaded:
            entries = window.flatten(0, 1)
            self._columns[: len(entries)].copy_(entries)
            self._loaded = first

    def __call__(self, x_t: Tensor, row: Tensor, copies: int = 1) -> Tensor:
        at = self._offset_of_row.index_select(0, row) + self._slots[: len(x_t)]
        return self._ends.after(self._network(self._ends.before(x_t), self._columns.index_select(0, at)), row)

    def static_tensors(self) -> dict[str, Tensor]:
        own = {"columns": self._columns, "offset_of_row": self._offset_of_row, "slots": self._slots}
        own["timesteps"] = self._timesteps
        return {**own, **self._network.static_tensors()}


class StaticRun:
    """A `Run` over buffers that stay where they are, for one batch of a kind after another, with what is recorded of it."""

    def __init__(self, network: CompiledUNet, kind: Kind, shape: tuple[int, int, int], device: torch.device) -> None:
        self.recordings: dict[bool, Recording] = {}
        self._cannot_be_recorded = False
        self._seeds = torch.zeros(kind.images, 2, dtype=torch.int64, device=device)
        self._guidance = torch.ones(kind.images, dtype=torch.float32, device=device)
        self._rows = kind.table(device)
        self._denoiser = StaticDenoiser(network, kind, self._rows.timesteps)
        self._guided: Sequence[bool] = ()
        self.step = SamplingStep(
            self._denoiser,
            self._rows,
            shape,
            seeds=self._seeds,
            guidance=self._guidance,
            guidance_rescale=kind.guidance_rescale,
            dynamic_threshold=kind.dynamic_threshold,
        )
        self.x, self.x_0 = self.step.x, self.step.x_0

    def load(self, batch: SamplingBatch, table: ConditioningTable) -> None:
        """Take a batch of the kind, ready for its row 0."""
        rows, own = batch.table.num_rows, self._rows
        own.coefficients[:rows].copy_(batch.table.coefficients)
        own.timesteps[:rows].copy_(batch.table.timesteps)
        if own.learned_noise is not None and batch.table.learned_noise is not None:
            own.learned_noise.coefficients[:rows].copy_(batch.table.learned_noise.coefficients)
        self._seeds.copy_(batch.seeds)
        self._guidance.copy_(batch.guidance)
        self._denoiser.load(table, batch.labels)
        self._guided = batch.guided
        self.step.start()

    def unload(self) -> None:
        """Let go of what belongs to the batch and is not copied."""
        self._denoiser.unload()

    def record(self, recorder: GraphRecorder) -> None:
        """Record what the loaded batch needs and is not recorded yet. Where that fails, warn: rows are executed then."""
        for guided in sorted(set(self._guided) - set(self.recordings)):
            if self._cannot_be_recorded:
                return
            work = partial(self.step, guided)
            # Compiles, and lets libraries choose and allocate. An error here is one that sampling has in any case.
            recorder.warm_up(work)
            self.step.start()
            try:
                self.recordings[guided] = recorder.record(work)
            except RuntimeError as error:
                self._cannot_be_recorded = True
                reason = " ".join(str(error).split())[:300]
                warnings.warn(f"a CUDA graph could not be recorded ({reason}); sampling goes on without one", stacklevel=2)

    def advance(self, row: int) -> None:
        self._denoiser.prepare(row)
        guided = self._guided[row]
        if (recording := self.recordings.get(guided)) is not None:
            recording.replay()
        else:
            self.step(guided)

    def static_tensors(self) -> dict[str, Tensor]:
        """Every tensor that a row may touch beyond those it makes for itself, by name."""
        return self.step.static_tensors()


class GraphedNetwork:
    """A network's inference form with the buffers and recordings of the kinds of batches drawn last. It keeps no model alive."""

    def __init__(self, dtype: torch.dtype, compiled: bool, recorder: GraphRecorder) -> None:
        self._dtype, self._compiled, self._recorder = dtype, compiled, recorder
        self._network: CompiledUNet | None = None
        self._runs = OrderedDict[Kind, StaticRun]()
        self._lock = threading.Lock()

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Of which there are buffers, the one used last at the end."""
        return tuple(self._runs)

    @contextmanager
    def begin(self, model: ConditionalUNet, batch: SamplingBatch) -> Iterator[StaticRun]:
        """A run of the model's present weights, loaded and recorded."""
        # The buffers hold one run at a time: another thread's, or one begun within on_step, gets its own, unrecorded.
        owned = self._lock.acquire(blocking=False)
        try:
            # The buffers outlive the caller's mode: made in inference mode they could not be written outside of it.
            with torch.inference_mode(False), torch.no_grad():
                run = self._run(model, batch, owned)
                try:
                    run.load(batch, ConditioningTable(model, batch.table.timesteps, batch.labels, max_bytes=_TABLE_BYTES))
                    if owned:
                        run.record(self._recorder)
                    yield run
                finally:
                    run.unload()
        finally:
            if owned:
                self._lock.release()

    def _run(self, model: ConditionalUNet, batch: SamplingBatch, owned: bool) -> StaticRun:
        parameter = next(model.parameters())
        if not owned:
            network = CompiledUNet(model, self._dtype, compiled=False)
        elif self._network is not None and self._network.fits(model):
            network = self._network
            network.refresh(model)
        else:
            # Recordings of a former network would go on with its weights.
            self._runs.clear()
            network = self._network = CompiledUNet(model, self._dtype, compiled=self._compiled)
        kind = Kind.of(batch, model.config.largest_label, parameter.element_size() * network.width)
        if not owned:
            return StaticRun(network, kind, image_shape(model), parameter.device)
        run = self._runs.pop(kind, None) or StaticRun(network, kind, image_shape(model), parameter.device)
        self._runs[kind] = run
        while len(self._runs) > MOST_KINDS:
            self._runs.popitem(last=False)
        return run


class GraphExecutor:
    """An `Executor` of a model on a GPU, which shares a `GraphedNetwork` with others of the same model."""

    def __init__(self, model: ConditionalUNet, graphed: GraphedNetwork) -> None:
        self._model, self._graphed = model, graphed

    @contextmanager
    def begin(self, batch: SamplingBatch) -> Iterator[Run]:
        # Noise of PyTorch's generators is drawn between the rows, into memory that the recordings do not know.
        begun = self._graphed.begin(self._model, batch) if batch.noise is None else EagerExecutor(self._model).begin(batch)
        with begun as run:
            yield run


_Forms = dict[tuple[torch.device, torch.dtype, bool], GraphedNetwork]
_forms_of: WeakKeyDictionary[ConditionalUNet, _Forms] = WeakKeyDictionary()


def graph_executor(
    model: ConditionalUNet,
    dtype: torch.dtype,
    *,
    compiled: bool,
    recorder: Callable[[torch.device], GraphRecorder] = CudaGraphRecorder,
) -> GraphExecutor:
    """Of a model on a GPU: what was compiled and recorded for it is found again, until the model is garbage.

    Args: dtype: what the network computes in. compiled: whether it is compiled. recorder: of graphs on a device.
    """
    forms = _forms_of.setdefault(model, {})
    device = next(model.parameters()).device
    for stale in [key for key in forms if key[0] != device]:
        del forms[stale]
    key = (device, dtype, compiled)
    if key not in forms:
        forms[key] = GraphedNetwork(dtype, compiled, recorder(device))
    return GraphExecutor(model, forms[key])


def release_graphs(model: ConditionalUNet) -> None:
    """Give back what `generate` keeps of a model on a GPU, else as long as the model: copied weights, code, recordings."""
    _forms_of.pop(model, None)


__all__ = ["MOST_KINDS", "GraphExecutor", "Kind", "StaticDenoiser", "StaticRun", "graph_executor", "release_graphs"]
