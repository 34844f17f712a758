"""The walk of a network in PyTorch's operations: what a GPU runs, and a CPU without the native library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcond.engine.conditioning_table import Site
from fastcond.engine.network_walk import Norm
from fastcond.nn.blocks import SelfAttention, fir_resample, pad_for
from fastcond.nn.label_attention import LabelTransformer
from fastcond.ops import ada_group_norm


class TorchOperations:
    """Executes a walk on tensors [B, C, H, W].

    Args: columns: [B, all columns of the table], what the conditioning says at this row for each image. Its values are cast to a
        map's dtype only where a bias is added: scales and shifts stay as they are.
    """

    def __init__(self, columns: Tensor) -> None:
        self._columns = columns

    def convolve(
        self,
        conv: nn.Conv2d,
        x: Tensor,
        *,
        norm: Norm | None = None,
        upsampled: bool = False,
        site: Site | None = None,
        residual: Tensor | None = None,
        divisor: float = 1.0,
    ) -> Tensor:
        if norm is not None:
            x = self._normalise(x, norm)
        if upsampled:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        y = conv(pad_for(conv, x))
        if site is not None:
            y = y + site.parts(self._columns)[1][:, :, None, None].to(y.dtype)
        return _divided(y if residual is None else residual + y, divisor)

    def attend(self, attention: SelfAttention, x: Tensor, norm: Norm | None) -> Tensor:
        return _divided(x + attention.attend(x if norm is None else self._normalise(x, norm)), attention.divisor)

    def transform(self, transformer: LabelTransformer, x: Tensor, sites: Sequence[Site]) -> Tensor:
        return transformer.transform(x, [site.parts(self._columns)[1] for site in sites])

    def join(self, x: Tensor, skip: Tensor) -> Tensor:
        return torch.cat([x, skip], dim=1)

    def resample(self, x: Tensor, how: Literal["down", "up"], norm: Norm | None = None, kernel: Tensor | None = None) -> Tensor:
        if norm is not None:
            x = self._normalise(x, norm)
        if kernel is not None:
            return fir_resample(x, how, kernel)
        return F.avg_pool2d(x, 2) if how == "down" else F.interpolate(x, scale_factor=2.0, mode="nearest")

    def _normalise(self, x: Tensor, norm: Norm) -> Tensor:
        scale, shift = (None, None) if norm.site is None else norm.site.parts(self._columns)
        activation: Literal["silu"] | None = "silu" if norm.silu else None
        return ada_group_norm(
            x, scale, shift, norm.groups, weight=norm.weight, bias=norm.bias, eps=norm.eps, activation=activation
        )


def _divided(x: Tensor, divisor: float) -> Tensor:
    return x if divisor == 1.0 else x / divisor
