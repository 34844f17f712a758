"""Noise from PyTorch's generators, drawn as diffusers' pipelines draw it, so that a run can be compared image by image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

Rng = Literal["philox", "torch"] | torch.Generator | Sequence[torch.Generator]


class TorchNoise:
    """The noise of one batch: at first what the run starts from, then, row by row, what its step adds.

    One generator draws the batch together, a list of them an image each; on the generator's own device, which for a result that
    does not depend on the GPU is the CPU, and in the network's dtype.

    Args: generator: one, or one an image. shape: (B, C, H, W). noisy_rows: of the table; the others draw nothing, as in
        diffusers. dtype: the network's. device: where `current` is wanted.
    Attributes: current: float32 [B, C, H, W], at an address that stays.
    """

    def __init__(
        self,
        generator: torch.Generator | Sequence[torch.Generator],
        shape: tuple[int, int, int, int],
        noisy_rows: Sequence[bool],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._generator, self._shape, self._noisy_rows, self._dtype = generator, shape, noisy_rows, dtype
        self.current = torch.empty(shape, dtype=torch.float32, device=device)
        self._draw()

    def before_row(self, row: int) -> None:
        """To be called before the row is executed."""
        if self._noisy_rows[row]:
            self._draw()

    def _draw(self) -> None:
        own, shape = self._generator, self._shape
        if isinstance(own, torch.Generator):
            z = torch.randn(shape, generator=own, dtype=self._dtype, device=own.device)
        else:
            z = torch.cat([torch.randn((1, *shape[1:]), generator=g, dtype=self._dtype, device=g.device) for g in own])
        self.current.copy_(z)


def skip_batch(
    generator: torch.Generator, shape: tuple[int, int, int, int], noisy_rows: Sequence[bool], dtype: torch.dtype
) -> None:
    """Leave a generator where a batch's `TorchNoise` leaves it."""
    for _ in range(1 + sum(noisy_rows)):
        torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)


def generators(rng: Rng, count: int, seed: int) -> torch.Generator | Sequence[torch.Generator] | None:
    """What `generate`'s rng asks for: None for philox; for "torch" one generator of the seed, on the CPU.

    Raises: ValueError for another word, or a list that has not one generator an image.
    """
    if isinstance(rng, torch.Generator):
        return rng
    if isinstance(rng, str):
        if rng not in ("philox", "torch"):
            raise ValueError(f"rng is {rng!r}; choose philox or torch, or give a torch.Generator or a list of them")
        return torch.Generator().manual_seed(seed) if rng == "torch" else None
    own = list(rng)
    if len(own) != count or not all(isinstance(one, torch.Generator) for one in own):
        raise ValueError(f"rng is a list of {len(own)}; give {count} torch.Generator, one a label")
    return own
