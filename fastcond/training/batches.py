"""What a training step sees: images, labels, timesteps, noise, label dropout and flips, all functions of (seed, step)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastcond.config import TrainingConfig
from fastcond.data import LabelledImages
from fastcond.nn import drop_labels
from fastcond.ops import philox_bits, philox_normal
from fastcond.ops.philox import DATA_ORDER, TRAINING_DRAWS, TRAINING_NOISE

_SHARE_OF_FREE_MEMORY = 0.25  # of a GPU's free memory that the dataset may take


@dataclass(frozen=True)
class Batch:
    """x_0 float32 [B, C, H, W] in [-1, 1], channels_last; eps like x_0; timestep int64 [B].

    label: int64 [B], or float32 [B, K] of data whose labels are rows; already dropped.
    """

    x_0: Tensor
    label: Tensor
    timestep: Tensor
    eps: Tensor


class BatchSource:
    """Draws the batches of a run. The image at position p of step s depends on (seed, s, p) and the data, on nothing else."""

    def __init__(
        self, data: LabelledImages, config: TrainingConfig, num_timesteps: int, null_label: int, device: torch.device
    ) -> None:
        self.config, self.num_timesteps, self.null_label, self.device = config, num_timesteps, null_label, device
        self.count = len(data.labels)
        self._host_images, self._images = data.images, _place(data.images, device)
        # Which images come next is worked out where they lie, so that nothing is waited for.
        self._place = device if self._images is not None else torch.device("cpu")
        self.labels = torch.from_numpy(data.labels).to(self._place)
        self._permutations: dict[int, Tensor] = {}
        if config.balanced:
            if self.labels.dim() == 2:
                raise ValueError(
                    "--balance draws every class equally often, and labels that are rows name no class; leave it out"
                )
            self._by_class = torch.argsort(self.labels, stable=True)
            self._class_sizes = torch.bincount(self.labels, minlength=data.num_classes)
            self._class_starts = self._class_sizes.cumsum(0) - self._class_sizes

    def draw(self, step: int, first: int, size: int) -> Batch:
        """Positions first .. first + size - 1 of the batch of `step` (from 0)."""
        chosen = self._choose(step, first, size)
        # seeds: (run seed, position in the batch); the step is Philox's own counter.
        position = torch.arange(first, first + size, device=self.device)
        seeds = torch.stack([torch.full_like(position, self.config.seed), position], dim=1)
        words = philox_bits(seeds, 3, step=step, stream=TRAINING_DRAWS)
        x_0 = self._gather(chosen)
        if self.config.flip:
            x_0 = torch.where((words[:, 2] < 2**31)[:, None, None, None], x_0.flip(3), x_0)
        dropped = words[:, 1] < int(self.config.label_dropout * 2**32)
        eps = philox_normal(seeds, x_0.shape[1:], step=step, stream=TRAINING_NOISE)
        return Batch(
            x_0=x_0,
            label=drop_labels(self.labels[chosen].to(self.device), dropped, self.null_label),
            timestep=(words[:, 0] * self.num_timesteps) >> 32,
            eps=eps.contiguous(memory_format=torch.channels_last),
        )

    def _choose(self, step: int, first: int, size: int) -> Tensor:
        """Which images: int64 [size], where the images lie."""
        if self.config.balanced:
            position = torch.arange(first, first + size, device=self._place)
            seeds = torch.stack([torch.full_like(position, self.config.seed), position], dim=1)
            words = philox_bits(seeds, 2, step=step, stream=DATA_ORDER)
            label = (words[:, 0] * len(self._class_sizes)) >> 32
            within = (words[:, 1] * self._class_sizes[label]) >> 32
            return self._by_class[self._class_starts[label] + within]
        # The run's positions are counted on through its epochs, each a permutation of all images.
        start = step * self.config.batch_size + first
        epochs = range(start // self.count, (start + size - 1) // self.count + 1)
        self._permutations = {epoch: self._permutation(epoch) for epoch in epochs}
        parts = []
        for epoch, order in self._permutations.items():
            begin = epoch * self.count
            parts.append(order[max(start - begin, 0) : start + size - begin])
        return torch.cat(parts)

    def _permutation(self, epoch: int) -> Tensor:
        """A random order of all images, of its own in each epoch."""
        if epoch in self._permutations:
            return self._permutations[epoch]
        seeds = torch.tensor([[self.config.seed, 0]], device=self._place)
        return torch.argsort(philox_bits(seeds, self.count, step=epoch, stream=DATA_ORDER)[0], stable=True)

    def _gather(self, chosen: Tensor) -> Tensor:
        if self._images is not None:
            images = self._images[chosen]
        else:
            images = torch.from_numpy(self._host_images[chosen.numpy()])
            images = images.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else images
        return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def _place(images: np.ndarray, device: torch.device) -> Tensor | None:
    """The images on the device where they fit; None for those that stay on the host, or as a memory map on disk."""
    if not _fits(images, device):
        return None
    return torch.from_numpy(np.require(images, requirements=["C", "W"])).to(device)


def _fits(images: np.ndarray, device: torch.device) -> bool:
    """Whether the images, one byte a value, take no more than their share of the device's memory."""
    if device.type == "cuda":
        return images.nbytes <= _SHARE_OF_FREE_MEMORY * torch.cuda.mem_get_info(device)[0]
    return not isinstance(images, np.memmap)
