"""AdaGN forward and backward in Triton, one kernel a pass: the tiers T0 and T1 (plan.py).

A program's tile is [channels, positions] of one image: contiguous and channels_last differ in the strides alone. Letters
as in reference.py. Arithmetic is fp32; no atomics, and every sum has an order that depends on the shape of one image only.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastcond.ops.ada_group_norm.triton_device import (
    column,
    du_of,
    gain_and_offset,
    group_sum,
    image_of,
    inside_tile,
    keep,
    load_of_group,
    load_tile,
    normalise,
    of_rows,
    operand,
    over_group,
    pivot_of,
    positions_of,
    row_sums,
    rstd_of,
    shape_alone,
    store_of_group,
    store_operand_gradients,
    store_tile,
    tile_of,
    tile_offsets,
)


@shape_alone
def forward_kernel(
    x,
    scale,
    shift,
    weight,
    bias,
    y,
    mean,
    mean_rest,
    rstd,
    scale_stride,
    shift_stride,
    eps,
    C: tl.constexpr,
    G: tl.constexpr,
    HW: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    SILU: tl.constexpr,
    ALIGNED: tl.constexpr,
    GROUPS: tl.constexpr,
    CTAS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_HW: tl.constexpr,
):
    """T0 and T1: GROUPS whole groups of one image. x, y [B, C, HW]; mean, mean_rest, rstd fp32 [B, G]."""
    width: tl.constexpr = C // G
    rows: tl.constexpr = GROUPS * width
    padded: tl.constexpr = rows != BLOCK_C or HW != BLOCK_HW
    count: tl.constexpr = width * HW
    image, first_group, row, channel, row_offset = tile_of(tl.program_id(0), C, G, HW, CHANNELS_LAST, GROUPS, BLOCK_C)
    position = positions_of(0, CTAS, BLOCK_HW)
    offsets = tile_offsets(row_offset, position, C, CHANNELS_LAST, CTAS)
    inside = inside_tile(row, position, rows, HW, CTAS)
    x = image_of(x, image, C, HW, ALIGNED)
    y = image_of(y, image, C, HW, ALIGNED)
    value = load_tile(x + offsets, inside, padded)
    pivot = pivot_of(x, row, first_group, HW, CHANNELS_LAST, GROUPS, width)
    gain, offset = gain_and_offset(scale, shift, weight, bias, scale_stride, shift_stride, image, channel, row < rows)
    distance = keep(inside, value - of_rows(pivot, GROUPS, CTAS), padded)
    centre = group_sum(distance, row, GROUPS, width, CTAS) / count
    d = keep(inside, distance - of_rows(centre, GROUPS, CTAS), padded)
    r = rstd_of(group_sum(d * d, row, GROUPS, width, CTAS), count, eps)
    store_tile(y + offsets, normalise(d, of_rows(r, GROUPS, CTAS), gain, offset, SILU, CTAS), inside, padded)
    m = pivot + centre
    store_of_group(mean, m, image, first_group, row, G, GROUPS, width)
    # What the rounding of the mean left out, for the backward.
    store_of_group(mean_rest, (pivot - m) + centre, image, first_group, row, G, GROUPS, width)
    store_of_group(rstd, r, image, first_group, row, G, GROUPS, width)


@shape_alone
def backward_kernel(
    dy,
    x,
    scale,
    shift,
    weight,
    bias,
    mean,
    mean_rest,
    rstd,
    dx,
    dscale,
    dshift,
    A,
    B,
    scale_stride,
    shift_stride,
    C: tl.constexpr,
    G: tl.constexpr,
    HW: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    SILU: tl.constexpr,
    ALIGNED: tl.constexpr,
    GROUPS: tl.constexpr,
    CTAS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_HW: tl.constexpr,
):
    """T0 and T1: GROUPS whole groups of one image. A, B fp32 [B, C]; gradients that are not asked for are None."""
    width: tl.constexpr = C // G
    rows: tl.constexpr = GROUPS * width
    padded: tl.constexpr = rows != BLOCK_C or HW != BLOCK_HW
    count: tl.constexpr = width * HW
    image, first_group, row, channel, row_offset = tile_of(tl.program_id(0), C, G, HW, CHANNELS_LAST, GROUPS, BLOCK_C)
    position = positions_of(0, CTAS, BLOCK_HW)
    offsets = tile_offsets(row_offset, position, C, CHANNELS_LAST, CTAS)
    inside = inside_tile(row, position, rows, HW, CTAS)
    x = image_of(x, image, C, HW, ALIGNED)
    dy = image_of(dy, image, C, HW, ALIGNED)
    value = load_tile(x + offsets, inside, padded)
    upstream = load_tile(dy + offsets, inside, padded)
    gain, offset = gain_and_offset(scale, shift, weight, bias, scale_stride, shift_stride, image, channel, row < rows)
    m = of_rows(load_of_group(mean, image, first_group, row, G, GROUPS, width), GROUPS, CTAS)
    rest = of_rows(load_of_group(mean_rest, image, first_group, row, G, GROUPS, width), GROUPS, CTAS)
    r = of_rows(load_of_group(rstd, image, first_group, row, G, GROUPS, width), GROUPS, CTAS)
    xh = keep(inside, ((value - m) - rest) * r, padded)
    du = keep(inside, du_of(upstream, xh, gain, offset, SILU, CTAS), padded)
    a = row_sums(du * xh, CTAS)
    b = row_sums(du, CTAS)
    store_operand_gradients(a, b, weight, bias, A, B, dscale, dshift, image * C + channel, channel, row < rows)
    if dx is not None:
        m1 = of_rows(over_group(gain * a, row, GROUPS, width) / count, GROUPS, CTAS)
        m2 = of_rows(over_group(gain * b, row, GROUPS, width) / count, GROUPS, CTAS)
        dx = image_of(dx, image, C, HW, ALIGNED)
        store_tile(dx + offsets, r * ((column(gain, CTAS) * du - m2) - xh * m1), inside, padded)


@triton.jit(do_not_specialize=["batch"], do_not_specialize_on_alignment=["A", "B"])
def batch_sums_kernel(A, B, scale, dweight, dbias, batch, scale_stride, C: tl.constexpr, BLOCK: tl.constexpr):
    """dweight = sum_b (1 + scale) A and dbias = sum_b (1 + scale) B, image after image; A, B fp32 [B, C]."""
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = channel < C
    a = tl.zeros([BLOCK], tl.float32)
    b = tl.zeros([BLOCK], tl.float32)
    for _ in range(batch):
        factor = tl.full([BLOCK], 1.0, tl.float32)
        if scale is not None:
            factor += operand(scale, channel, here)
            scale += scale_stride
        a += factor * tl.load(A + channel, mask=here, other=0.0)
        b += factor * tl.load(B + channel, mask=here, other=0.0)
        # Pointers advance, and so are 64 bits wide at any batch size.
        A += C
        B += C
    if dweight is not None:
        tl.store(dweight + channel, a.to(dweight.dtype.element_ty), mask=here)
    if dbias is not None:
        tl.store(dbias + channel, b.to(dbias.dtype.element_ty), mask=here)
