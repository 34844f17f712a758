"""A case of norm_conv: its operands, PyTorch's own composition of it, the truth in float64, and the parity rule for both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcond.ops.norm_conv import ChannelNorm, ChannelStatistics, norm_conv, norm_conv_with_statistics, pack_conv_weight
from tests.tolerances import WINOGRAD_AMPLIFICATION, WINOGRAD_RELATIVE, assert_parity, largest_error


@dataclass(frozen=True)
class Case:
    """One call. shape: of x, [B, C, H, W]; bias: "none", "channel" ([K]) or "image" ([B, K])."""

    shape: tuple[int, int, int, int]
    features: int
    normed: bool = True
    silu: bool = True
    bias: str = "channel"
    residual: bool = True
    packed: bool = True
    channels_last: bool = True
    offset: float = 0.5
    dtype: torch.dtype = torch.float32

    def operands(self) -> dict[str, Any]:
        """Keyword arguments of norm_conv, weights as a network is initialised."""
        generator = torch.Generator().manual_seed(sum(self.shape) + self.features)
        batch, channels, height, width = self.shape

        def normal(*shape: int) -> Tensor:
            value = torch.randn(shape, generator=generator).to(self.dtype)
            return value.to(memory_format=torch.channels_last) if self.channels_last and len(shape) == 4 else value

        x = normal(*self.shape) + self.offset
        weight = normal(self.features, channels, 3, 3).contiguous() / (9 * channels) ** 0.5
        norm = None
        if self.normed:
            gain = 1 + 0.3 * normal(batch, channels)
            norm = ChannelNorm(self.offset + 0.1 * normal(batch, channels), gain, 0.3 * normal(batch, channels))
        bias = {"none": None, "channel": normal(self.features), "image": normal(batch, self.features)}[self.bias]
        return {
            "x": x,
            "weight": weight,
            "bias": bias,
            "residual": normal(batch, self.features, height, width) if self.residual else None,
            "norm": norm,
            "activation": "silu" if self.silu else None,
            "packed": pack_conv_weight(weight) if self.packed else None,
        }

    def ours(self, operands: dict[str, Any]) -> Tensor:
        return norm_conv(**operands)

    def composed(self, operands: dict[str, Any]) -> Tensor:
        """The same by PyTorch's own operations, in the operands' dtype."""
        h, norm, bias = operands["x"], operands["norm"], operands["bias"]
        if norm is not None:
            mean, gain, offset = (value[:, :, None, None] for value in norm)
            h = (h - mean) * gain + offset
        h = F.silu(h) if self.silu else h
        y = F.conv2d(h, operands["weight"], padding=1)
        if bias is not None:
            y = y + (bias if bias.dim() == 2 else bias[None])[:, :, None, None]
        return y if operands["residual"] is None else y + operands["residual"]


def exactly(operands: dict[str, Any]) -> dict[str, Any]:
    """The same numbers in float64, without the packed weight."""

    def wide(value: Any) -> Any:
        if isinstance(value, ChannelNorm):
            return ChannelNorm(*(part.double() for part in value))
        return value.double() if isinstance(value, Tensor) else value

    return {name: None if name == "packed" else wide(value) for name, value in operands.items()}


def check_parity(case: Case) -> None:
    """The result follows the parity rule and lies within WINOGRAD_RELATIVE of the truth; so do its statistics."""
    operands = case.operands()
    y, statistics = norm_conv_with_statistics(**operands)
    expected, pytorch = case.composed(exactly(operands)), case.composed(operands)
    assert y.dtype == case.dtype and y.shape == expected.shape
    largest = float(expected.abs().max())
    magnitude = WINOGRAD_AMPLIFICATION * largest
    assert_parity(str(case), y, pytorch, expected, magnitude=magnitude)
    error = largest_error(y, expected)
    assert case.dtype != torch.float32 or error <= WINOGRAD_RELATIVE * largest, f"{case}: relative error {error / largest:.3g}"
    if case.dtype in (torch.float32, torch.float64):  # of a 16-bit result they are taken before it is rounded
        check_statistics(case, y, statistics)


def check_statistics(case: Case, y: Tensor, statistics: ChannelStatistics) -> None:
    """Against y itself: what they lose is their own."""
    exact, positions = y.double(), y.shape[2] * y.shape[3]
    spread = exact - exact.mean(dim=(2, 3), keepdim=True)
    mean, m2 = exact.mean(dim=(2, 3)), spread.square().sum(dim=(2, 3))
    alone = y.float()  # PyTorch's own
    of_pytorch = alone.mean(dim=(2, 3)), alone.var(dim=(2, 3), unbiased=False) * positions
    terms = min(positions, 64)  # a sum's blocks: the rest is added in float64
    largest = float(exact.abs().max())
    assert_parity(f"{case}: mean", statistics.mean, of_pytorch[0], mean, magnitude=largest, terms=terms)
    # A distance to the mean is known to a rounding of y.
    size = float(m2.max()) + 2 * largest * positions**0.5 * float(m2.max()) ** 0.5
    assert_parity(f"{case}: m2", statistics.m2, of_pytorch[1], m2, magnitude=size)
