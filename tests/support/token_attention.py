"""A case of token_attention: its operands, output and gradients by ours, by PyTorch and in float64, and the parity rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastcond.ops import token_attention
from fastcond.ops.token_attention import reference
from tests.tolerances import assert_parity

NAMES = ("y", "dq", "dk", "dv")
Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]


@dataclass(frozen=True)
class Case:
    """One call. shape: of q, [B, tokens, C]; size: of queries and keys."""

    shape: tuple[int, int, int]
    heads: int
    size: float = 1.0
    one_tensor: bool = False
    dtype: torch.dtype = torch.float32

    def operands(self) -> list[Tensor]:
        """q, k, v and dy; the first three as parts of one tensor, if asked for."""
        generator = torch.Generator().manual_seed(sum(self.shape) + self.heads)
        batch, tokens, channels = self.shape
        qkv = torch.randn(batch, tokens, 3 * channels, generator=generator)
        qkv[:, :, : 2 * channels] *= self.size
        parts = qkv.to(self.dtype).chunk(3, dim=2)
        dy = torch.randn(self.shape, generator=generator).to(self.dtype)
        return [*(part if self.one_tensor else part.contiguous() for part in parts), dy]


def run(attention: Attention, q: Tensor, k: Tensor, v: Tensor, dy: Tensor, heads: int) -> list[Tensor]:
    """y and the gradients of q, k and v."""
    leaves = [value.detach().requires_grad_() for value in (q, k, v)]
    y = attention(*leaves, heads)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def check_parity(case: Case) -> None:
    """Output and gradients follow the parity rule."""
    operands = case.operands()
    wide = [value.double() for value in operands]
    actual, alone, expected = (
        run(attention, *values, case.heads)
        for attention, values in ((token_attention, operands), (reference.forward, operands), (reference.forward, wide))
    )
    for name, found, other, truth in zip(NAMES, actual, alone, expected, strict=True):
        assert found.dtype == case.dtype and found.shape == case.shape
        assert_parity(f"{case}: {name}", found, other, truth, magnitude=size_of_terms(name, *wide, case.heads))


def size_of_terms(name: str, q: Tensor, k: Tensor, v: Tensor, dy: Tensor, heads: int) -> float | None:
    """The gradients of queries and keys add terms that cancel, for one token to 0: the root of the sum of their squares."""
    if name not in ("dq", "dk"):
        return None
    q, k, v, dy = (value.unflatten(2, (heads, -1)).transpose(1, 2) for value in (q, k, v, dy))
    factor = q.shape[3] ** -0.5
    softmax = (q @ k.transpose(2, 3) * factor).softmax(dim=3)
    squares = softmax.square() * (dy.square() @ v.square().transpose(2, 3))
    of_all = squares @ k.square() if name == "dq" else squares.transpose(2, 3) @ q.square()
    return factor * float(of_all.max()) ** 0.5
