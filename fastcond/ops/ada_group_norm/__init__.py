"""GroupNorm with a conditioned scale and shift and SiLU, in one pass: the only normalisation in the network's body."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from fastcond.ops.ada_group_norm import eager
from fastcond.ops.ada_group_norm.op import ada_group_norm_forward


def ada_group_norm(
    x: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    num_groups: int = 32,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    activation: Literal["silu"] | None = None,
) -> Tensor:
    """Adaptive group normalisation: act((weight xh + bias) (1 + scale) + shift), where xh is x normalised within its groups.

    Args:
        x: fp32, fp16, bf16 or fp64 [B, C, H, W] or [B, C, *], contiguous or channels_last. Statistics are fp32 (fp64 for fp64).
        scale, shift: float [B, C], also [1, C] or [B, C, 1, 1]; strided views of a chunk are read in place; None stands for 0.
        num_groups: G, a divisor of C.
        weight, bias: float [C], the affine parameters of a plain group norm; None stands for 1 and 0.
        eps: added to the variance.
        activation: "silu" or None.
    Returns: a tensor of x's shape, dtype and memory format. Differentiable once in all five tensors.
    Raises: ValueError naming the argument that does not fit and what was found.
    Source: Wu & He 2018, eq. 1 and 7 (group norm); Dhariwal & Nichol 2021, section 3.1 (AdaGN); Ramachandran et al. 2017 (SiLU).
    """
    if activation not in (None, "silu"):
        raise ValueError(f"activation is {activation!r}; choose 'silu' or None")
    silu = activation == "silu"
    y = eager.ada_group_norm(x, (scale, shift, weight, bias), num_groups, eps, silu)
    if y is not None:
        return y
    operands = _checked(x, scale, shift, weight, bias, num_groups)
    if operands[0] is not scale or operands[1] is not shift:
        y = eager.ada_group_norm(x, operands, num_groups, eps, silu)
    return ada_group_norm_forward(x, *operands, num_groups, eps, silu)[0] if y is None else y


def _checked(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, weight: Tensor | None, bias: Tensor | None, num_groups: int
) -> tuple[Tensor | None, ...]:
    """scale, shift, weight and bias with the shapes that the op takes."""
    if x.dim() < 2 or not x.is_floating_point():
        raise ValueError(f"x is {x.dtype} {list(x.shape)}; a float tensor [B, C, *] is needed")
    batch, channels = x.shape[:2]
    if num_groups < 1 or channels % num_groups != 0:
        raise ValueError(f"{channels} channels cannot be divided into {num_groups} groups")
    if scale is not None:
        scale = _conditioning("scale", scale, batch, channels)
    if shift is not None:
        shift = _conditioning("shift", shift, batch, channels)
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and value.shape != (channels,):
            raise ValueError(f"{name} has shape {list(value.shape)}; [{channels}] is needed for x of shape {list(x.shape)}")
    return scale, shift, weight, bias


def _conditioning(name: str, value: Tensor, batch: int, channels: int) -> Tensor:
    """`value` as [B, C], without a copy."""
    found = value.shape
    if value.dim() > 2 and all(size == 1 for size in found[2:]):
        value = value.flatten(1)
    if value.shape != (batch, channels):
        if value.shape != (1, channels):
            raise ValueError(f"{name} has shape {list(found)}; [{batch}, {channels}] is needed")
        value = value.expand(batch, channels)
    return value


__all__ = ["ada_group_norm"]
