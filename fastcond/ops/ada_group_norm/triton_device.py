"""What AdaGN's Triton kernels share: a program's tile, sums over groups, conditioning, SiLU and its derivative."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

# The code of a kernel, and with it the order of its sums, must not depend on where an image happens to lie: ALIGNED, which
# follows from the shape, says whether wide accesses are allowed, and not the address.
_ANY_ADDRESS = "dy x y mean mean_rest rstd partial dx A B".split()


def shape_alone(function: Callable[..., None]) -> Any:
    """triton.jit for a kernel whose code follows from shapes and dtypes."""
    parameters = inspect.signature(function).parameters
    return triton.jit(do_not_specialize_on_alignment=[name for name in _ANY_ADDRESS if name in parameters])(function)


@triton.jit
def tile_of(
    program, C: tl.constexpr, G: tl.constexpr, HW: tl.constexpr, CL: tl.constexpr, GROUPS: tl.constexpr, BC: tl.constexpr
):
    """(image, first group, rows, channels, offsets of the channels in an image, stride of a position) of a program's tile."""
    packs: tl.constexpr = G // GROUPS
    width: tl.constexpr = C // G
    image = (program // packs).to(tl.int64)
    first_group = program % packs * GROUPS
    row = tl.arange(0, BC)
    channel = first_group * width + row
    offset = channel if CL else channel * HW
    return image, first_group, row, channel, offset


@triton.jit
def image_of(pointer, image, C: tl.constexpr, HW: tl.constexpr, ALIGNED: tl.constexpr):
    """Where an image begins; ALIGNED: at a multiple of 16 bytes."""
    pointer += image * C * HW
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def positions_of(first, CTAS: tl.constexpr, BLOCK_HW: tl.constexpr):
    """The positions of a tile, [1, BLOCK_HW].

    A cluster's tile has an axis more, [CTAS, 1, BLOCK_HW / CTAS]: Triton gives each CTA an entry of the slowest axis, and so
    a run of positions; left to itself it would give each a few channels, and accesses would be narrow in channels_last.
    """
    if CTAS == 1:
        position = (first + tl.arange(0, BLOCK_HW))[None, :]
    else:
        share: tl.constexpr = BLOCK_HW // CTAS
        position = (first + tl.arange(0, CTAS)[:, None] * share + tl.arange(0, share)[None, :])[:, None, :]
    return position


@triton.jit
def column(of_row, CTAS: tl.constexpr):
    """A value of each row [BC], as it is spread over a tile."""
    value = of_row[:, None] if CTAS == 1 else of_row[None, :, None]
    return value


@triton.jit
def tile_offsets(row_offset, position, C: tl.constexpr, CL: tl.constexpr, CTAS: tl.constexpr):
    return column(row_offset, CTAS) + (position * C if CL else position)


@triton.jit
def inside_tile(row, position, ROWS: tl.constexpr, HW: tl.constexpr, CTAS: tl.constexpr):
    return column(row < ROWS, CTAS) & (position < HW)


@triton.jit
def load_tile(pointers, inside, PADDED: tl.constexpr):
    value = tl.load(pointers, mask=inside, other=0.0) if PADDED else tl.load(pointers)
    return value.to(tl.float32)


@triton.jit
def store_tile(pointers, value, inside, PADDED: tl.constexpr):
    stored = value.to(pointers.dtype.element_ty)
    if PADDED:
        tl.store(pointers, stored, mask=inside)
    else:
        tl.store(pointers, stored)


@triton.jit
def keep(inside, value, PADDED: tl.constexpr):
    """0 where the tile is padding: a select, so that no NaN gets through."""
    return tl.where(inside, value, 0.0) if PADDED else value


@triton.jit
def row_sums(value, CTAS: tl.constexpr):
    """Sum over the positions, for each row [BC]: within a CTA, and then over the cluster."""
    total = tl.sum(value, axis=1) if CTAS == 1 else tl.sum(tl.sum(value, axis=2), axis=0)
    return total


@triton.jit
def over_group(of_row, row, GROUPS: tl.constexpr, WIDTH: tl.constexpr):
    """Sum of a value of each row over the rows of its group, for each row [BC], or as one number where there is one group."""
    if GROUPS == 1:
        total = tl.sum(of_row, axis=0)
    elif GROUPS <= 4:
        # A select and no product: a NaN stays in its group.
        total = tl.zeros_like(of_row)
        for group in tl.static_range(GROUPS):
            own = row // WIDTH == group
            total = tl.where(own, tl.sum(tl.where(own, of_row, 0.0), axis=0), total)
    else:
        same = (row // WIDTH)[:, None] == (row // WIDTH)[None, :]
        total = tl.sum(tl.where(same, of_row[None, :], 0.0), axis=1)
    return total


@triton.jit
def group_sum(value, row, GROUPS: tl.constexpr, WIDTH: tl.constexpr, CTAS: tl.constexpr):
    total = tl.sum(value) if GROUPS == 1 else over_group(row_sums(value, CTAS), row, GROUPS, WIDTH)
    return total


@triton.jit
def of_rows(value, GROUPS: tl.constexpr, CTAS: tl.constexpr):
    """A number of each group, as it is spread over a tile: a scalar, or a column."""
    return value if GROUPS == 1 else column(value, CTAS)


@triton.jit
def load_of_group(pointer, image, first_group, row, G: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr):
    """An entry of fp32 [B, G]: a scalar where the tile is one group, else one for each row."""
    if GROUPS == 1:
        value = tl.load(pointer + image * G + first_group)
    else:
        value = tl.load(pointer + image * G + first_group + row // WIDTH, mask=row < GROUPS * WIDTH, other=0.0)
    return value


@triton.jit
def store_of_group(pointer, value, image, first_group, row, G: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr):
    if GROUPS == 1:
        tl.store(pointer + image * G + first_group, value)
    else:
        # The first row of a group speaks for all.
        first = (row % WIDTH == 0) & (row < GROUPS * WIDTH)
        tl.store(pointer + image * G + first_group + row // WIDTH, value, mask=first)


@triton.jit
def pivot_of(x, row, first_group, HW: tl.constexpr, CL: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr):
    """The first element of each row's group: distances to it are 0 in a constant group, and large means cost no digits."""
    stride: tl.constexpr = WIDTH if CL else WIDTH * HW
    if GROUPS == 1:
        value = tl.load(x + first_group * stride)
    else:
        value = tl.load(x + (first_group + row // WIDTH) * stride, mask=row < GROUPS * WIDTH, other=0.0)
    return value.to(tl.float32)


@triton.jit
def operand(pointer, channel, here):
    return tl.load(pointer + channel, mask=here, other=0.0).to(tl.float32)


@triton.jit
def gain_and_offset(scale, shift, weight, bias, scale_stride, shift_stride, image, channel, here):
    """weight (1 + scale) and bias (1 + scale) + shift of each row; a pointer that is None stands for 1 or 0."""
    gain = tl.full(channel.shape, 1.0, tl.float32)
    if scale is not None:
        gain += operand(scale + image * scale_stride, channel, here)
    offset = tl.zeros_like(gain)
    if bias is not None:
        offset = operand(bias, channel, here) * gain
    if weight is not None:
        gain *= operand(weight, channel, here)
    if shift is not None:
        offset += operand(shift + image * shift_stride, channel, here)
    return gain, offset


@triton.jit
def normalise(d, rstd, gain, offset, SILU: tl.constexpr, CTAS: tl.constexpr):
    u = d * rstd * column(gain, CTAS) + column(offset, CTAS)
    if SILU:
        u = u / (1.0 + tl.exp(-u))
    return u


@triton.jit
def du_of(dy, xh, gain, offset, SILU: tl.constexpr, CTAS: tl.constexpr):
    """dy act'(u); silu'(u) = s (1 + u (1 - s)) with s = 1 / (1 + e^-u)."""
    if SILU:
        u = xh * column(gain, CTAS) + column(offset, CTAS)
        s = 1.0 / (1.0 + tl.exp(-u))
        dy *= s * (1.0 + u * (1.0 - s))
    return dy


@triton.jit
def rstd_of(squares, COUNT: tl.constexpr, eps):
    return tl.div_rn(1.0, tl.sqrt_rn(squares / COUNT + eps))


@triton.jit
def store_operand_gradients(a, b, weight, bias, A, B, dscale, dshift, at, channel, here):
    """dscale = weight A + bias B and dshift = B of each row; A and B for the sums over the batch."""
    if dscale is not None:
        d = a
        if weight is not None:
            d = operand(weight, channel, here) * a
        if bias is not None:
            d += operand(bias, channel, here) * b
        tl.store(dscale + at, d.to(dscale.dtype.element_ty), mask=here)
    if dshift is not None:
        tl.store(dshift + at, b.to(dshift.dtype.element_ty), mask=here)
    if A is not None:
        tl.store(A + at, a, mask=here)
        tl.store(B + at, b, mask=here)
