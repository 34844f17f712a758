"""A case of conv3x3: its operands, output and gradients by ours, by PyTorch and in float64, and the parity rule for all four."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcond.ops.conv3x3.op import conv3x3_native
from tests.tolerances import (
    WINOGRAD_AMPLIFICATION,
    WINOGRAD_GRADIENT_AMPLIFICATION,
    WINOGRAD_RELATIVE,
    assert_parity,
    largest_error,
)

NAMES = ("y", "dx", "dweight", "dbias")
# How much larger a term is that Winograd's transforms add.
AMPLIFICATIONS = (WINOGRAD_AMPLIFICATION, WINOGRAD_AMPLIFICATION, WINOGRAD_GRADIENT_AMPLIFICATION, 1.0)
Convolution = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Case:
    """One call. shape: of x, [B, C, H, W]."""

    shape: tuple[int, int, int, int]
    features: int
    bias: bool = True
    channels_last: bool = True
    dtype: torch.dtype = torch.float32

    def operands(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """x, weight, bias, dy; the weight as a network is initialised, the others of size 1 and not around 0."""
        generator = torch.Generator().manual_seed(sum(self.shape) + self.features)
        batch, channels, height, width = self.shape

        def normal(*shape: int) -> Tensor:
            value = torch.randn(shape, generator=generator).to(self.dtype)
            return value.to(memory_format=torch.channels_last) if self.channels_last and len(shape) == 4 else value

        weight = normal(self.features, channels, 3, 3) / (9 * channels) ** 0.5
        bias = normal(self.features) if self.bias else None
        return normal(*self.shape) + 0.5, weight, bias, normal(batch, self.features, height, width) + 0.1


def run(convolve: Convolution, x: Tensor, weight: Tensor, bias: Tensor | None, dy: Tensor) -> list[Tensor]:
    """y and the gradients of x, weight and bias, 0 where there is no bias."""
    leaves = [value.detach().clone().requires_grad_() for value in (x, weight, *([] if bias is None else [bias]))]
    y = convolve(leaves[0], leaves[1], leaves[2] if bias is not None else None)
    y.backward(dy)
    grads = [leaf.grad for leaf in leaves]
    return [y.detach(), *grads, *([weight.new_zeros(len(weight))] if bias is None else [])]


def pytorch(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(x, weight, bias, padding=1)


def ours(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The op behind conv3x3, which takes the few channels too that conv3x3 leaves to PyTorch."""
    return conv3x3_native(x, weight, bias)


def check_parity(case: Case, convolve: Convolution = ours) -> None:
    """Output and gradients follow the parity rule; those that Winograd makes lie within WINOGRAD_RELATIVE of the truth."""
    operands = case.operands()
    wide = [None if value is None else value.double() for value in operands]
    actual, alone, expected = run(convolve, *operands), run(pytorch, *operands), run(pytorch, *wide)
    # The root of the sum of the squares of what is added up: the result may be small by chance.
    squares = run(pytorch, *(None if value is None else value.square() for value in wide))
    for name, found, other, truth, square, by in zip(NAMES, actual, alone, expected, squares, AMPLIFICATIONS, strict=True):
        largest = max(float(square.max()) ** 0.5, float(truth.abs().max()))
        assert found.dtype == case.dtype
        assert_parity(f"{case}: {name}", found, other, truth, magnitude=by * largest)
        if case.dtype == torch.float32:
            error = largest_error(found, truth)
            assert error <= WINOGRAD_RELATIVE * largest, f"{case}: {name}: relative error {error / largest:.3g}"
