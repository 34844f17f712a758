"""Launchers of AdaGN's Triton kernels, with the signatures of reference.py.

Other strides than the two layouts are made dense; fp64, empty tensors and shapes without a plan run the reference.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from fastcond.ops.ada_group_norm import layout, reference
from fastcond.ops.ada_group_norm import triton_kernels as kernels
from fastcond.ops.ada_group_norm import triton_split_kernels as split_kernels
from fastcond.ops.ada_group_norm.plan import ACCESS, Plan, make_plan

_BATCH_SUM_CHANNELS = 32  # channels of a program that sums over the batch


# Triton 3.7's plan-CTA pass refuses the kernels.
TRITON_TAKES_CLUSTERS = tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 8)


@lru_cache
def _takes_clusters(device: torch.device) -> bool:
    """Clusters of CTAs: sm_90 and newer."""
    return TRITON_TAKES_CLUSTERS and torch.cuda.get_device_capability(device) >= (9, 0)


def _plan(x: Tensor, num_groups: int, channels_last: bool, backward: bool) -> Plan | None:
    if x.dtype == torch.float64 or x.numel() == 0:
        return None
    positions = x[0, 0].numel()
    clusters = _takes_clusters(x.device)
    return make_plan(x.shape[1], num_groups, positions, x.element_size(), channels_last, clusters, backward)


def _images_aligned(x: Tensor) -> bool:
    """Whether every image of an aligned batch begins at a whole access: a matter of shape and dtype alone."""
    return x[0].numel() * x.element_size() % ACCESS == 0


def _aligned(x: Tensor) -> Tensor:
    """x, copied in the rare case that its images could be aligned and are not."""
    return x.clone() if _images_aligned(x) and x.data_ptr() % ACCESS else x


def _tile(x: Tensor, num_groups: int, channels_last: bool, plan: Plan) -> dict[str, Any]:
    """The compile-time arguments and options that all kernels take."""
    return {
        "C": x.shape[1],
        "G": num_groups,
        "HW": x[0, 0].numel(),
        "CHANNELS_LAST": channels_last,
        "ALIGNED": _images_aligned(x),
        "GROUPS": plan.groups,
        "BLOCK_C": plan.block_c,
        "BLOCK_HW": plan.block_hw,
        "num_warps": plan.num_warps,
        # Fused, a sum over lanes of products a b is fma(a_i, b_i, a_j b_j) in lane i and fma(a_j, b_j, a_i b_i) in lane j: two
        # lanes that should hold one sum differ, and both write it to one place. ptxas, too, then leaves mul and add alone.
        "enable_fp_fusion": False,
    }


def _rows(value: Tensor | None) -> Tensor | None:
    """Channels one after another; a chunk of a larger tensor is taken as it lies."""
    return value if value is None or value.stride(-1) == 1 else value.contiguous()


def _stride(value: Tensor | None) -> int:
    return 0 if value is None else value.stride(0)


def forward(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    eps: float,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """`reference.forward` on the GPU."""
    channels_last = layout.channels_last(x)
    if channels_last is None:
        y, mean, rstd = forward(layout.dense(x), scale, shift, weight, bias, num_groups, eps, silu)
        return torch.empty_like(x).copy_(y), mean, rstd
    plan = _plan(x, num_groups, channels_last, backward=False)
    if plan is None:
        return reference.forward(x, scale, shift, weight, bias, num_groups, eps, silu)
    scale, shift, weight, bias = (_rows(value) for value in (scale, shift, weight, bias))
    x, batch = _aligned(x), x.shape[0]
    y = torch.empty_like(x)
    statistics = torch.empty((3, batch, num_groups), dtype=torch.float32, device=x.device)
    mean, rstd = statistics[:2], statistics[2]
    tile = _tile(x, num_groups, channels_last, plan)
    programs = batch * (num_groups // plan.groups)
    strides = _stride(scale), _stride(shift), eps
    if plan.tier != "T2":
        cluster = {"CTAS": plan.num_ctas, "num_ctas": plan.num_ctas}
        outputs = (y, mean[0], mean[1], rstd)
        kernels.forward_kernel[(programs,)](x, scale, shift, weight, bias, *outputs, *strides, **tile, **cluster, SILU=silu)
        return y, mean, rstd
    partial = torch.empty((2, plan.splits, batch, num_groups), dtype=torch.float32, device=x.device)
    split = {"TILES": plan.tiles_per_split, "SPLITS": plan.splits}
    split_kernels.partial_statistics_kernel[(programs * plan.splits,)](x, partial, **tile, **split)
    split_kernels.apply_kernel[(programs * plan.tiles,)](
        x, scale, shift, weight, bias, partial, y, mean[0], mean[1], rstd, *strides, **tile, **split, SILU=silu
    )
    return y, mean, rstd


def backward(
    dy: Tensor,
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    num_groups: int,
    silu: bool,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`reference.backward` on the GPU."""
    channels_last = layout.channels_last(x)
    if channels_last is None:
        dense = backward(dy, layout.dense(x), scale, shift, weight, bias, mean, rstd, num_groups, silu, needed)
        return (torch.empty_like(x).copy_(dense[0]) if needed[0] else dense[0], *dense[1:])
    plan = _plan(x, num_groups, channels_last, backward=True)
    if plan is None:
        return reference.backward(dy, x, scale, shift, weight, bias, mean, rstd, num_groups, silu, needed)
    # A gradient may come in the other memory format or in another dtype.
    dy = torch.empty_like(x).copy_(dy) if dy.dtype != x.dtype or dy.stride() != x.stride() else dy
    x, dy = _aligned(x), _aligned(dy)
    scale, shift, weight, bias = (_rows(value) for value in (scale, shift, weight, bias))
    mean, rstd = mean.contiguous(), rstd.contiguous()
    batch, channels = x.shape[:2]
    grads = [
        None if value is None or not need else torch.empty(value.shape, dtype=value.dtype, device=x.device)
        for value, need in zip((scale, shift, weight, bias), needed[1:], strict=True)
    ]
    dscale, dshift, dweight, dbias = grads
    dx = torch.empty_like(x) if needed[0] else None
    over_batch = dweight is not None or dbias is not None
    sums = torch.empty((2, batch, channels), dtype=torch.float32, device=x.device) if over_batch else None
    A, B = (None, None) if sums is None else (sums[0], sums[1])
    tile = _tile(x, num_groups, channels_last, plan)
    programs = batch * (num_groups // plan.groups)
    inputs = (dy, x, scale, shift, weight, bias, mean[0], mean[1], rstd)
    outputs, strides = (dx, dscale, dshift, A, B), (_stride(scale), _stride(shift))
    if plan.tier != "T2":
        cluster = {"CTAS": plan.num_ctas, "num_ctas": plan.num_ctas}
        kernels.backward_kernel[(programs,)](*inputs, *outputs, *strides, **tile, **cluster, SILU=silu)
    else:
        partial = torch.empty((2, plan.splits, batch, channels), dtype=torch.float32, device=x.device)
        split_kernels.partial_gradients_kernel[(programs * plan.splits,)](
            *inputs, partial, *strides, **tile, SILU=silu, TILES=plan.tiles_per_split, SPLITS=plan.splits
        )
        split_kernels.apply_gradients_kernel[(programs * plan.tiles,)](
            *inputs, partial, *outputs, *strides, **tile, SILU=silu, SPLITS=plan.splits
        )
    if over_batch:
        kernels.batch_sums_kernel[(triton.cdiv(channels, _BATCH_SUM_CHANNELS),)](
            A,
            B,
            scale,
            dweight,
            dbias,
            batch,
            _stride(scale),
            C=channels,
            BLOCK=_BATCH_SUM_CHANNELS,
            num_warps=1,
            enable_fp_fusion=False,
        )
    empty = x.new_empty(0)
    return tuple(empty if grad is None else grad for grad in (dx, *grads))  # type: ignore[return-value]
