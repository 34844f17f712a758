"""A case of linear: its operands, output and gradients by ours, by PyTorch and in float64, and the parity rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcond.ops import linear
from fastcond.ops.linear.op import linear_native
from tests.tolerances import assert_parity


@dataclass(frozen=True)
class Case:
    """One call. shape: of x, [B, tokens, C]."""

    shape: tuple[int, int, int]
    features: int
    dtype: torch.dtype = torch.float32

    def operands(self) -> list[Tensor]:
        """x, weight, bias, dy."""
        generator = torch.Generator().manual_seed(sum(self.shape) + self.features)
        batch, tokens, channels = self.shape
        shapes = self.shape, (self.features, channels), (self.features,), (batch, tokens, self.features)
        x, weight, bias, dy = (torch.randn(shape, generator=generator).to(self.dtype) for shape in shapes)
        return [x, weight / channels**0.5, bias, dy]


CASES = [
    Case((2, 64, 128), 128),
    Case((3, 16, 64), 64),
    Case((1, 70, 48), 33),
    Case((2, 16, 32), 96),
    Case((4, 3, 64), 64),
    Case((2, 20, 7), 40),
    Case((1, 1, 1), 1),
]
# Rows, channels and features that are no multiple of anything, and one block of rows and several.
NATIVE_CASES = [
    *CASES,
    Case((2, 5, 16), 16),
    Case((3, 7, 48), 20),
    Case((1, 33, 80), 50),
    Case((2, 300, 144), 33),
    Case((2, 512, 128), 97),
]
Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def native(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The op behind linear, which takes the few tokens too that linear leaves to PyTorch."""
    return linear_native(x, weight, bias)


def run(function: Linear, x: Tensor, weight: Tensor, bias: Tensor, dy: Tensor) -> list[Tensor]:
    """y and the gradients of x, weight and bias."""
    leaves = [value.detach().requires_grad_() for value in (x, weight, bias)]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def check_parity(case: Case, function: Linear = linear) -> None:
    """Output and gradients follow the parity rule."""
    operands = case.operands()
    wide = [value.double() for value in operands]
    actual, alone, expected = run(function, *operands), run(F.linear, *operands), run(F.linear, *wide)
    sizes = [float(value.max()) ** 0.5 for value in run(F.linear, *(value.square() for value in wide))]
    for name, found, other, truth, size in zip(("y", "dx", "dweight", "dbias"), actual, alone, expected, sizes, strict=True):
        assert found.dtype == case.dtype
        assert_parity(f"{case}: {name}", found, other, truth, magnitude=size)
