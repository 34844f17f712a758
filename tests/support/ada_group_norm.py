"""A case of ada_group_norm: its operands, PyTorch's own composition of it, and the parity rule for output and gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastcond.ops import ada_group_norm
from tests.tolerances import assert_parity

OPERANDS = ("x", "scale", "shift", "weight", "bias")
MEMORY_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass(frozen=True)
class Case:
    """One call. conditioning: "none", "chunk" (strided halves of [B, 2C]), "row" ([1, C]) or "map" ([B, C, 1, 1])."""

    shape: tuple[int, ...]
    num_groups: int
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    conditioning: str = "chunk"
    affine: bool = True
    silu: bool = True
    eps: float = 1e-5
    offset: float = 0.5
    device: str = "cpu"

    def operands(self) -> list[Tensor | None]:
        """x, scale, shift, weight, bias: leaves that require a gradient."""
        generator = torch.Generator().manual_seed(sum(self.shape))

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(self.device, self.dtype)

        batch, channels = self.shape[:2]
        x = normal(*self.shape) + self.offset
        if self.channels_last and x.dim() in MEMORY_FORMATS:
            x = x.contiguous(memory_format=MEMORY_FORMATS[x.dim()])
        scale, shift = {
            "none": lambda: (None, None),
            "chunk": lambda: normal(batch, 2 * channels).chunk(2, dim=1),
            "row": lambda: (normal(1, channels), normal(1, channels)),
            "map": lambda: (normal(batch, channels, 1, 1), normal(batch, channels, 1, 1)),
        }[self.conditioning]()
        weight, bias = (normal(channels), normal(channels)) if self.affine else (None, None)
        return [leaf(value) for value in (x, scale, shift, weight, bias)]

    def upstream(self) -> Tensor:
        """dy, contiguous whatever x's layout, as a convolution may hand it back."""
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(1)).to(self.device, self.dtype)

    def ours(self, operands: list[Tensor | None]) -> Tensor:
        x, scale, shift, weight, bias = operands
        activation = "silu" if self.silu else None
        return ada_group_norm(x, scale, shift, self.num_groups, weight=weight, bias=bias, eps=self.eps, activation=activation)

    def composed(self, operands: list[Tensor | None]) -> Tensor:
        """The same by PyTorch's own operations, in the operands' dtype."""
        x, scale, shift, weight, bias = operands
        # torch.group_norm, not F.group_norm, which refuses a single value a group.
        y = torch.group_norm(x, self.num_groups, weight, bias, self.eps)
        if scale is not None:
            ones = [1] * (x.dim() - 2)
            y = y * (1 + scale.reshape(*scale.shape[:2], *ones)) + shift.reshape(*shift.shape[:2], *ones)
        return torch.nn.functional.silu(y) if self.silu else y

    def truth(self, operands: list[Tensor | None]) -> Tensor:
        """The definition, for float64: unlike PyTorch's group norm, it does not fold the mean into an offset."""
        x, scale, shift, weight, bias = operands
        grouped = x.reshape(x.shape[0], self.num_groups, -1)
        distance = grouped - grouped[:, :, :1]
        centred = distance - distance.mean(dim=2, keepdim=True)
        u = (centred / (centred.square().mean(dim=2, keepdim=True) + self.eps).sqrt()).reshape(x.shape)
        ones = [1] * (x.dim() - 2)
        if weight is not None:
            u = u * weight.reshape(-1, *ones) + bias.reshape(-1, *ones)
        if scale is not None:
            u = u * (1 + scale.reshape(*scale.shape[:2], *ones)) + shift.reshape(*shift.shape[:2], *ones)
        return u * u.sigmoid() if self.silu else u


def leaf(value: Tensor | None, dtype: torch.dtype | None = None) -> Tensor | None:
    """The same numbers and strides as a leaf of autograd."""
    return None if value is None else value.detach().to(dtype or value.dtype).requires_grad_()


def exactly(value: Tensor | None) -> Tensor | None:
    """The same numbers in float64, contiguous: PyTorch's channels_last group norm takes E[x^2] - mean^2."""
    return None if value is None else leaf(value.detach().contiguous(), torch.float64)


def value_and_gradients(y: Tensor, operands: list[Tensor | None], dy: Tensor) -> dict[str, Tensor]:
    """{"y": ..., "x": dx, "scale": dscale, ...}, for the operands that are there."""
    present = {name: operand for name, operand in zip(OPERANDS, operands, strict=True) if operand is not None}
    grads = torch.autograd.grad(y, list(present.values()), dy.to(y.dtype))
    return {"y": y.detach(), **dict(zip(present, grads, strict=True))}


def check_parity(case: Case, ours_of: Callable[[Case, list[Tensor | None]], Tensor] = Case.ours) -> None:
    """Output and every gradient of `case` follow the parity rule, have x's dtype and shape, and are finite."""
    operands, dy = case.operands(), case.upstream()
    ours = value_and_gradients(ours_of(case, operands), operands, dy)
    again = [leaf(operand) for operand in operands]
    pytorch = value_and_gradients(case.composed(again), again, dy)
    exact = [exactly(operand) for operand in operands]
    expected = value_and_gradients(case.truth(exact), exact, dy)
    magnitudes, terms = largest_terms(case, exact, dy.double()), summed_terms(case)
    assert ours.keys() == expected.keys()
    for name, value in ours.items():
        assert value.dtype == case.dtype
        assert_parity(
            f"{case}: {name}",
            value,
            pytorch[name],
            expected[name],
            magnitude=magnitudes[name],
            terms=terms.get(name, 1),
        )


def largest_terms(case: Case, exact: list[Tensor | None], dy: Tensor) -> dict[str, float]:
    """The largest number that is added on the way to each result, in float64: what its roundings are relative to."""
    with torch.no_grad():
        x, scale, shift, weight, bias = (operand.detach() if operand is not None else None for operand in exact)

        def size(value: Tensor | None) -> float:
            return 0.0 if value is None else float(value.abs().max())

        grouped = x.reshape(x.shape[0], case.num_groups, -1)
        rstd = size((grouped.var(dim=2, unbiased=False) + case.eps).rsqrt())
        xh = size(torch.group_norm(x, case.num_groups, None, None, case.eps))
        gain, one_plus_scale = 1.0 if weight is None else size(weight), 1 + size(scale)
        normalised = gain * xh + size(bias)
        du = 1.1 * size(dy)  # |silu'| <= 1.0998
        return {
            "y": normalised * one_plus_scale + size(shift),
            "x": rstd * gain * one_plus_scale * du * (1 + xh),
            "scale": du * normalised,
            "shift": du,
            "weight": one_plus_scale * du * xh,
            "bias": one_plus_scale * du,
        }


def summed_terms(case: Case) -> dict[str, int]:
    """How many numbers each gradient sums."""
    batch, positions = case.shape[0], torch.Size(case.shape[2:]).numel()
    conditioning = batch * positions if case.conditioning == "row" else positions
    return {"scale": conditioning, "shift": conditioning, "weight": batch * positions, "bias": batch * positions}
