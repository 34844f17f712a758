"""How a batch of images is run, row by row: what `generate` asks for, and the plain way to do it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fastcond.diffusion import StepTable
from fastcond.engine.frozen_unet import Denoiser
from fastcond.engine.kept_form import frozen_form
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
        guidance_rescale, dynamic_threshold, cfg_plus_plus: as `generate`'s. noise: where it is not philox's.
    """

    table: StepTable
    guided: Sequence[bool]
    labels: Tensor
    seeds: Tensor
    guidance: Tensor
    guidance_rescale: float = 0.0
    dynamic_threshold: float | None = None
    cfg_plus_plus: bool = False
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
    """One operation after another, in the model's own precision.

    Args: guide: what evaluates the second half of a guided batch; None: the model itself.
    """

    def __init__(self, model: ConditionalUNet, guide: ConditionalUNet | None = None) -> None:
        self._model, self._guide = model, guide

    @contextmanager
    def begin(self, batch: SamplingBatch) -> Iterator[Run]:
        with ExitStack() as forms:
            step = SamplingStep(
                self._denoiser(batch, forms),
                batch.table,
                image_shape(self._model),
                seeds=batch.seeds,
                guidance=batch.guidance,
                guidance_rescale=batch.guidance_rescale,
                dynamic_threshold=batch.dynamic_threshold,
                cfg_plus_plus=batch.cfg_plus_plus,
                noise=None if batch.noise is None else batch.noise.current,
            )
            yield _EagerRun(step, batch.guided, batch.noise)

    def _denoiser(self, batch: SamplingBatch, forms: ExitStack) -> Denoiser:
        timesteps, labels = batch.table.timesteps, batch.labels
        frozen = forms.enter_context(frozen_form(self._model))
        if self._guide is None:
            return frozen.denoiser(timesteps, labels)
        guide = forms.enter_context(frozen_form(self._guide))
        of_model, of_guide = labels.chunk(2)
        return _TwoDenoisers(frozen.denoiser(timesteps, of_model), guide.denoiser(timesteps, of_guide), len(of_model))


class _TwoDenoisers:
    """The first `images` of a batch by one network, the others by another."""

    def __init__(self, first: Denoiser, second: Denoiser, images: int) -> None:
        self._first, self._second, self._images = first, second, images

    def __call__(self, x_t: Tensor, row: Tensor, copies: int = 1) -> Tensor:
        if len(x_t) <= self._images:
            return self._first(x_t, row)
        return torch.cat([self._first(x_t[: self._images], row), self._second(x_t[self._images :], row)])

    def static_tensors(self) -> dict[str, Tensor]:
        second = {f"guide.{name}": value for name, value in self._second.static_tensors().items()}
        return {**self._first.static_tensors(), **second}


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
