"""Every variant of the Triton kernels, as calls of their launchers on small CPU tensors: for the gates on the machine code,
for the report of registers and traffic, and for the interpreter of PTX."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastcond.ops.ada_group_norm import triton_launch
from fastcond.ops.ada_group_norm.plan import Plan, make_plan
from fastcond.ops.diffusion_step import triton_kernels as step_kernels
from fastcond.ops.philox import triton_kernels as philox_kernels
from tests.support.samplers import seeds_of
from tests.support.triton_ada_group_norm import capacity

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Norm:
    """A call of ada_group_norm. clusters: whether the GPU takes them; x is [1, channels, side, side]."""

    clusters: bool
    channels: int
    num_groups: int
    side: int
    dtype: str
    layout: str
    affine: bool = True
    conditioned: bool = True
    silu: bool = True

    def __str__(self) -> str:
        switches = "".join(
            f" {name}" for name, on in (("affine", self.affine), ("conditioned", self.conditioned), ("silu", self.silu)) if on
        )
        tiers = "/".join(dict.fromkeys(plan.tier for plan in self.plans()))
        return f"{tiers} {self.channels}/{self.num_groups} {self.side}x{self.side} {self.dtype} {self.layout}{switches}"

    def plans(self) -> tuple[Plan, Plan]:
        """Of the forward and of the backward."""
        itemsize, last = DTYPES[self.dtype].itemsize, self.layout == "channels_last"
        call = (self.channels, self.num_groups, self.side**2, itemsize, last, self.clusters)
        forward, backward = make_plan(*call, False), make_plan(*call, True)
        assert forward is not None and backward is not None
        return forward, backward

    def tensors(self, batch: int = 1) -> tuple[Tensor, list[Tensor | None]]:
        """dy, and x, scale, shift, weight, bias."""
        generator = torch.Generator().manual_seed(self.channels + self.side)
        dtype = DTYPES[self.dtype]

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(dtype)

        x, dy = (
            normal(batch, self.channels, self.side, self.side).contiguous(memory_format=FORMATS[self.layout]) for _ in range(2)
        )
        scale, shift = normal(batch, 2 * self.channels).chunk(2, dim=1) if self.conditioned else (None, None)
        weight, bias = (normal(self.channels), normal(self.channels)) if self.affine else (None, None)
        return dy, [x, scale, shift, weight, bias]

    def call(self, batch: int = 1) -> list[Tensor]:
        """Forward and backward by the launchers: y, mean, rstd and the gradients."""
        dy, operands = self.tensors(batch)
        with capacity(None, clusters=self.clusters):
            y, mean, rstd = triton_launch.forward(*operands, self.num_groups, 1e-5, self.silu)
            needed = [operand is not None for operand in operands]
            grads = triton_launch.backward(dy, *operands, mean, rstd, self.num_groups, self.silu, needed)
        return [y, mean, rstd, *grads]


# (C, G, side): packed small groups, one group a CTA, the tiny preset's skip connections (12 channels a group), imagenet64's
# (42 and 6 channels), and large groups, which take a cluster or two kernels.
_SHAPES = [(128, 32, 4), (256, 32, 16), (128, 32, 32), (96, 8, 16), (1344, 32, 8)]
_LARGE = [(192, 32, 64), (128, 32, 128)]


def norms(architecture: int) -> list[Norm]:
    """All variants for sm_`architecture`."""
    main = [Norm(False, *shape, dtype, layout) for shape in (*_SHAPES, *_LARGE) for dtype in DTYPES for layout in FORMATS]
    if architecture >= 90 and triton_launch.TRITON_TAKES_CLUSTERS:
        main += [Norm(True, *shape, dtype, layout) for shape in _LARGE for dtype in DTYPES for layout in FORMATS]
    switches = [
        Norm(False, 128, 32, 8, dtype, layout, affine, conditioned, silu)
        for dtype, layout in (("fp32", "contiguous"), ("bf16", "channels_last"))
        for affine, conditioned, silu in ((False, True, True), (True, False, True), (False, False, False), (True, True, False))
    ]
    return main + switches


@dataclass(frozen=True)
class Step:
    """A call of diffusion_step on images [2, 4, side, side]."""

    dtype: str
    layout: str
    guided: bool
    history: bool
    noise: bool
    halves: int
    side: int = 16

    def __str__(self) -> str:
        switches = "".join(
            f" {name}" for name, on in (("guided", self.guided), ("history", self.history), ("noise", self.noise)) if on
        )
        return f"{self.dtype} {self.layout}{switches}, {self.halves} {'half' if self.halves == 1 else 'halves'}"

    def operands(self) -> tuple[Tensor | bool | None, ...]:
        generator = torch.Generator().manual_seed(3)
        shape, memory_format = (2, 4, self.side, self.side), FORMATS[self.layout]

        def normal() -> Tensor:
            return torch.randn(shape, generator=generator).contiguous(memory_format=memory_format)

        x, out_cond, out_uncond, history = normal(), normal(), normal(), normal()
        coefficients = torch.rand(5, 8, generator=generator) + 0.5
        dtype = DTYPES[self.dtype]
        return (
            x,
            out_cond.to(dtype),
            out_uncond.to(dtype) if self.guided else None,
            history if self.history else None,
            coefficients,
            torch.tensor([3]),
            torch.tensor([2.5, 1.0]) if self.guided else None,
            seeds_of(2),
            self.noise,
        )

    def call(self) -> list[Tensor]:
        """x_next (both halves) and x_0."""
        operands = self.operands()
        x = operands[0]
        assert isinstance(x, Tensor)
        shape = (self.halves * 2, *x.shape[1:])
        x_next = torch.full(shape, torch.nan).contiguous(memory_format=FORMATS[self.layout])
        x_0 = torch.full_like(x, torch.nan)
        step_kernels.step_into(*operands, x_next, x_0)  # type: ignore[arg-type]
        return [x_next, x_0]


STEPS = [
    Step(dtype, layout, guided, history, noise, halves)
    for dtype in DTYPES
    for layout in FORMATS
    for guided, history, noise, halves in ((True, True, True, 2), (False, False, True, 1), (True, False, False, 2))
]


def philox_words() -> list[Tensor]:
    return [philox_kernels.philox_bits(seeds_of(2), torch.tensor([3]), 3000, 1)]


def philox_normals() -> list[Tensor]:
    return [philox_kernels.philox_normal(seeds_of(2), torch.tensor([3]), (3, 32, 32), 1)]


PHILOX: dict[str, Callable[[], list[Tensor]]] = {"words": philox_words, "normals": philox_normals}
