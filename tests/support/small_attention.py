"""A case of small_attention: its operands, PyTorch's own composition of it, the truth in float64, and the parity rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcond.ops.norm_conv import ChannelNorm
from fastcond.ops.small_attention import pack_attention_weights, small_attention
from tests.tolerances import assert_parity


@dataclass(frozen=True)
class Case:
    """One call. shape: of x, [B, C, H, W]; sharpness: how much larger than at initialisation queries and keys are."""

    shape: tuple[int, int, int, int]
    heads: int
    normed: bool = True
    biased: bool = True
    residual: bool = True
    packed: bool = True
    channels_last: bool = True
    sharpness: float = 1.0
    dtype: torch.dtype = torch.float32

    def operands(self) -> dict[str, Any]:
        """Keyword arguments of small_attention, weights as a network is initialised."""
        generator = torch.Generator().manual_seed(sum(self.shape) + self.heads)
        batch, channels = self.shape[:2]

        def normal(*shape: int) -> Tensor:
            value = torch.randn(shape, generator=generator).to(self.dtype)
            return value.to(memory_format=torch.channels_last) if self.channels_last and len(shape) == 4 else value

        norm = None
        if self.normed:
            gain = 1 + 0.3 * normal(batch, channels)
            norm = ChannelNorm(0.1 * normal(batch, channels), gain, 0.3 * normal(batch, channels))
        qkv, out = normal(3 * channels, channels) / channels**0.5, normal(channels, channels) / channels**0.5
        qkv[: 2 * channels] *= self.sharpness
        return {
            "x": normal(*self.shape),
            "qkv_weight": qkv,
            "out_weight": out,
            "heads": self.heads,
            "qkv_bias": normal(3 * channels) if self.biased else None,
            "out_bias": normal(channels) if self.biased else None,
            "residual": normal(*self.shape) if self.residual else None,
            "norm": norm,
            "packed": pack_attention_weights(qkv, out) if self.packed else None,
        }

    def ours(self, operands: dict[str, Any]) -> Tensor:
        return small_attention(**operands)

    def composed(self, operands: dict[str, Any]) -> Tensor:
        """The same by PyTorch's own operations, in the operands' dtype."""
        x, norm = operands["x"], operands["norm"]
        batch, channels = x.shape[:2]
        u = x
        if norm is not None:
            mean, gain, offset = (value[:, :, None, None] for value in norm)
            u = (u - mean) * gain + offset
        qkv = F.linear(u.flatten(2).transpose(1, 2), operands["qkv_weight"], operands["qkv_bias"])
        q, k, v = qkv.reshape(batch, -1, 3, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, -1, channels)
        y = F.linear(attended, operands["out_weight"], operands["out_bias"]).transpose(1, 2).reshape(x.shape)
        return y if operands["residual"] is None else y + operands["residual"]


def exactly(operands: dict[str, Any]) -> dict[str, Any]:
    """The same numbers in float64, without the packed weights."""

    def wide(value: Any) -> Any:
        if isinstance(value, ChannelNorm):
            return ChannelNorm(*(part.double() for part in value))
        return value.double() if isinstance(value, Tensor) else value

    return {name: None if name == "packed" else wide(value) for name, value in operands.items()}


def check_parity(case: Case) -> None:
    """The result follows the parity rule."""
    operands = case.operands()
    y, pytorch, expected = case.ours(operands), case.composed(operands), case.composed(exactly(operands))
    assert y.dtype == case.dtype and y.shape == expected.shape
    assert_parity(str(case), y, pytorch, expected)
