"""How a batch of images is run, row by row: what `generate` asks for, and the plain way to do it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from fastcond.diffusion import StepTable
from fastcond.engine.frozen_unet import FrozenUNet
from fastcond.engine.sampling_step import SamplingStep
from fastcond.engine.torch_noise import TorchNoise
from fastcond.nn import ConditionalUNet


@dataclass(frozen=True)
class SamplingBatch:
    """B images to draw. All tensors are on the model's device.

    Attributes:
        table: the sampler's rows. guided: whether each of them computes both halves.
        labels: int64 [2B], those without a condition second.
        seeds: int64 [B, 2], (run seed, image index). guidance: float32 [B], w of each image.
        guidance_rescale, dynamic_threshold: as `generate`'s. noise: where it is not philox's.
    """

    table: StepTable
    guided: Sequence[bool]
    labels: Tensor
    seeds: Tensor
    guidance: Tensor
    guidance_rescale: float = 0.0
    dynamic_threshold: float | None = None
    noise: TorchNoise | None = None


class Run(Protocol):
    """A batch under way. x, x_0: float32 [B, C, H, W], the sample and the last prediction, overwritten by every row."""

    @property
    def x(self) -> Tensor: ...

    @property
    def x_0(self) -> Tensor: ...

    def advance(self, row: int) -> None:
        """Execute the row, which is the next one; the first is 0."""
        ...


class Executor(Protocol):
    """Runs batches of one network."""

    def begin(self, batch: SamplingBatch) -> AbstractContextManager[Run]:
        """The batch before its first row. What the run hands out is its own until the context is left."""
        ...


class EagerExecutor:
    """One operation after another, in the model's own precision."""

    def __init__(self, model: ConditionalUNet) -> None:
        self._frozen, self._image_shape = FrozenUNet(model), image_shape(model)

    @contextmanager
    def begin(self, batch: SamplingBatch) -> Iterator[Run]:
        step = SamplingStep(
            self._frozen.denoiser(batch.table.timesteps, batch.labels),
            batch.table,
            self._image_shape,
            seeds=batch.seeds,
            guidance=batch.guidance,
            guidance_rescale=batch.guidance_rescale,
            dynamic_threshold=batch.dynamic_threshold,
            noise=None if batch.noise is None else batch.noise.current,
        )
        yield _EagerRun(step, batch.guided, batch.noise)


class _EagerRun:
    def __init__(self, step: SamplingStep, guided: Sequence[bool], noise: TorchNoise | None) -> None:
        self._step, self._guided, self._noise = step, guided, noise
        self.x, self.x_0 = step.x, step.x_0

    def advance(self, row: int) -> None:
        if self._noise is not None:
            self._noise.before_row(row)
        self._step(self._guided[row])


def image_shape(model: ConditionalUNet) -> tuple[int, int, int]:
    """(C, H, W) of what the model denoises."""
    return model.config.in_channels, *model.config.image_size
