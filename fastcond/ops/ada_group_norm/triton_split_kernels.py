"""AdaGN forward and backward in Triton for groups that do not fit on chip: two kernels a pass, the tier T2 (plan.py)."""

from __future__ import annotations

import triton.language as tl

from fastcond.ops.ada_group_norm.triton_device import (
    column,
    du_of,
    gain_and_offset,
    group_sum,
    image_of,
    inside_tile,
    load_of_group,
    load_tile,
    normalise,
    of_rows,
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
def partial_statistics_kernel(
    x,
    partial,
    C: tl.constexpr,
    G: tl.constexpr,
    HW: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ALIGNED: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_HW: tl.constexpr,
    TILES: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """T2, first kernel: mean distance from the pivot and squares about it of TILES tiles; partial fp32 [2, SPLITS, B, G]."""
    width: tl.constexpr = C // G
    rows: tl.constexpr = GROUPS * width
    program, split = tl.program_id(0) // SPLITS, tl.program_id(0) % SPLITS
    images_groups = tl.num_programs(0).to(tl.int64) // SPLITS * GROUPS
    image, first_group, row, _, row_offset = tile_of(program, C, G, HW, CHANNELS_LAST, GROUPS, BLOCK_C)
    x = image_of(x, image, C, HW, ALIGNED)
    pivot = pivot_of(x, row, first_group, HW, CHANNELS_LAST, GROUPS, width)
    mean = pivot * 0.0
    squares = pivot * 0.0
    done = 0.0
    for i in range(TILES):
        first = (split * TILES + i) * BLOCK_HW
        position = positions_of(first, 1, BLOCK_HW)
        inside = inside_tile(row, position, rows, HW, 1)
        value = load_tile(x + tile_offsets(row_offset, position, C, CHANNELS_LAST, 1), inside, True)
        distance = tl.where(inside, value - of_rows(pivot, GROUPS, 1), 0.0)
        here = (tl.minimum(tl.maximum(HW - first, 0), BLOCK_HW) * width).to(tl.float32)
        of_tile = group_sum(distance, row, GROUPS, width, 1) / tl.maximum(here, 1.0)
        d = tl.where(inside, distance - of_rows(of_tile, GROUPS, 1), 0.0)
        # Chan, Golub & LeVeque 1983: the tile joins those before it.
        total = done + here
        share = here / tl.maximum(total, 1.0)
        delta = of_tile - mean
        mean += delta * share
        squares += group_sum(d * d, row, GROUPS, width, 1) + delta * delta * (done * share)
        done = total
    store_of_group(partial + split * images_groups, mean, image, first_group, row, G, GROUPS, width)
    store_of_group(partial + (SPLITS + split) * images_groups, squares, image, first_group, row, G, GROUPS, width)


@shape_alone
def apply_kernel(
    x,
    scale,
    shift,
    weight,
    bias,
    partial,
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
    BLOCK_C: tl.constexpr,
    BLOCK_HW: tl.constexpr,
    TILES: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """T2, second kernel: merge the partial statistics and normalise one tile."""
    width: tl.constexpr = C // G
    rows: tl.constexpr = GROUPS * width
    count: tl.constexpr = width * HW
    tiles: tl.constexpr = (HW + BLOCK_HW - 1) // BLOCK_HW
    program, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    images_groups = tl.num_programs(0).to(tl.int64) // tiles * GROUPS
    image, first_group, row, channel, row_offset = tile_of(program, C, G, HW, CHANNELS_LAST, GROUPS, BLOCK_C)
    x = image_of(x, image, C, HW, ALIGNED)
    y = image_of(y, image, C, HW, ALIGNED)
    position = positions_of(tile * BLOCK_HW, 1, BLOCK_HW)
    inside = inside_tile(row, position, rows, HW, 1)
    offsets = tile_offsets(row_offset, position, C, CHANNELS_LAST, 1)
    value = load_tile(x + offsets, inside, True)
    pivot = pivot_of(x, row, first_group, HW, CHANNELS_LAST, GROUPS, width)
    gain, offset = gain_and_offset(scale, shift, weight, bias, scale_stride, shift_stride, image, channel, row < rows)
    centre = pivot * 0.0
    squares = pivot * 0.0
    done = 0.0
    for split in range(SPLITS):
        here = (tl.minimum(HW - split * TILES * BLOCK_HW, TILES * BLOCK_HW) * width).to(tl.float32)
        of_split = load_of_group(partial + split * images_groups, image, first_group, row, G, GROUPS, width)
        more = load_of_group(partial + (SPLITS + split) * images_groups, image, first_group, row, G, GROUPS, width)
        total = done + here
        share = here / total
        delta = of_split - centre
        centre += delta * share
        squares += more + delta * delta * (done * share)
        done = total
    r = rstd_of(squares, count, eps)
    d = (value - of_rows(pivot, GROUPS, 1)) - of_rows(centre, GROUPS, 1)
    store_tile(y + offsets, normalise(d, of_rows(r, GROUPS, 1), gain, offset, SILU, 1), inside, True)
    if tile == 0:
        m = pivot + centre
        store_of_group(mean, m, image, first_group, row, G, GROUPS, width)
        store_of_group(mean_rest, (pivot - m) + centre, image, first_group, row, G, GROUPS, width)
        store_of_group(rstd, r, image, first_group, row, G, GROUPS, width)


@shape_alone
def partial_gradients_kernel(
    dy,
    x,
    scale,
    shift,
    weight,
    bias,
    mean,
    mean_rest,
    rstd,
    partial,
    scale_stride,
    shift_stride,
    C: tl.constexpr,
    G: tl.constexpr,
    HW: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    SILU: tl.constexpr,
    ALIGNED: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_HW: tl.constexpr,
    TILES: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """T2, first kernel: A and B of each channel over TILES tiles; partial fp32 [2, SPLITS, B, C]."""
    width: tl.constexpr = C // G
    rows: tl.constexpr = GROUPS * width
    program, split = tl.program_id(0) // SPLITS, tl.program_id(0) % SPLITS
    images_channels = tl.num_programs(0).to(tl.int64) // SPLITS * rows
    image, first_group, row, channel, row_offset = tile_of(program, C, G, HW, CHANNELS_LAST, GROUPS, BLOCK_C)
    x = image_of(x, image, C, HW, ALIGNED)
    dy = image_of(dy, image, C, HW, ALIGNED)
    gain, offset = gain_and_offset(scale, shift, weight, bias, scale_stride, shift_stride, image, channel, row < rows)
    m = of_rows(load_of_group(mean, image, first_group, row, G, GROUPS, width), GROUPS, 1)
    rest = of_rows(load_of_group(mean_rest, image, first_group, row, G, GROUPS, width), GROUPS, 1)
    r = of_rows(load_of_group(rstd, image, first_group, row, G, GROUPS, width), GROUPS, 1)
    a = tl.zeros([BLOCK_C, BLOCK_HW], tl.float32)
    b = tl.zeros([BLOCK_C, BLOCK_HW], tl.float32)
    for i in range(TILES):
        position = positions_of((split * TILES + i) * BLOCK_HW, 1, BLOCK_HW)
        inside = inside_tile(row, position, rows, HW, 1)
        offsets = tile_offsets(row_offset, position, C, CHANNELS_LAST, 1)
        value = load_tile(x + offsets, inside, True)
        upstream = load_tile(dy + offsets, inside, True)
        xh = ((value - m) - rest) * r
        du = tl.where(inside, du_of(upstream, xh, gain, offset, SILU, 1), 0.0)
        a += tl.where(inside, du * xh, 0.0)
        b += du
    at = split * images_channels + image * C + channel
    tl.store(partial + at, row_sums(a, 1), mask=row < rows)
    tl.store(partial + SPLITS * images_channels + at, row_sums(b, 1), mask=row < rows)


@shape_alone
def apply_gradients_kernel(
    dy,
    x,
    scale,
    shift,
    weight,
    bias,
    mean,
    mean_rest,
    rstd,
    partial,
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
    BLOCK_C: tl.constexpr,
    BLOCK_HW: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """T2, second kernel: the sums of all splits, and dx of one tile."""
    width: tl.constexpr = C // G
    rows: tl.constexpr = GROUPS * width
    count: tl.constexpr = width * HW
    tiles: tl.constexpr = (HW + BLOCK_HW - 1) // BLOCK_HW
    program, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    images_channels = tl.num_programs(0).to(tl.int64) // tiles * rows
    image, first_group, row, channel, row_offset = tile_of(program, C, G, HW, CHANNELS_LAST, GROUPS, BLOCK_C)
    here = row < rows
    a = tl.zeros([BLOCK_C], tl.float32)
    b = tl.zeros([BLOCK_C], tl.float32)
    for split in range(SPLITS):
        at = split * images_channels + image * C + channel
        a += tl.load(partial + at, mask=here, other=0.0)
        b += tl.load(partial + SPLITS * images_channels + at, mask=here, other=0.0)
    if tile == 0:
        store_operand_gradients(a, b, weight, bias, A, B, dscale, dshift, image * C + channel, channel, here)
    if dx is not None:
        gain, offset = gain_and_offset(scale, shift, weight, bias, scale_stride, shift_stride, image, channel, here)
        m = of_rows(load_of_group(mean, image, first_group, row, G, GROUPS, width), GROUPS, 1)
        rest = of_rows(load_of_group(mean_rest, image, first_group, row, G, GROUPS, width), GROUPS, 1)
        r = of_rows(load_of_group(rstd, image, first_group, row, G, GROUPS, width), GROUPS, 1)
        m1 = of_rows(over_group(gain * a, row, GROUPS, width) / count, GROUPS, 1)
        m2 = of_rows(over_group(gain * b, row, GROUPS, width) / count, GROUPS, 1)
        position = positions_of(tile * BLOCK_HW, 1, BLOCK_HW)
        inside = inside_tile(row, position, rows, HW, 1)
        offsets = tile_offsets(row_offset, position, C, CHANNELS_LAST, 1)
        x = image_of(x, image, C, HW, ALIGNED)
        dy = image_of(dy, image, C, HW, ALIGNED)
        dx = image_of(dx, image, C, HW, ALIGNED)
        value = load_tile(x + offsets, inside, True)
        upstream = load_tile(dy + offsets, inside, True)
        xh = ((value - m) - rest) * r
        du = du_of(upstream, xh, gain, offset, SILU, 1)
        store_tile(dx + offsets, r * ((column(gain, 1) * du - m2) - xh * m1), inside, True)
