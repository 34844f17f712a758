"""Floating point as PTX defines it, on numpy arrays of bits: what is exact here and what is not.

Exact, every bit: add, sub, mul, fma, div.rn, rcp.rn, sqrt.rn, conversions, comparisons, min and max, for f16, bf16 and f32 in
all four rounding directions where the instruction has them. f64 stands in for f32 and below: it holds their sums rounded to
odd (Boldo and Melquiond 2008), and a second rounding from odd to 24 bits or fewer gives what one rounding would have given.
Not exact: the .approx and .full instructions (ex2, lg2, sin, cos, tanh, rsqrt, rcp, sqrt, div). They are computed in float64
and rounded once; hardware differs by the few units in the last place that the PTX manual allows it.
NaN payloads are not modelled.
"""

from __future__ import annotations

import numpy as np

UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
SMALLEST_NORMAL = {"f32": 2.0**-126, "f16": 2.0**-14, "bf16": 2.0**-126}
CANONICAL_NAN = {"f16": 0x7FFF, "bf16": 0x7FFF, "f32": 0x7FFFFFFF}
SIZE = {"f16": 2, "bf16": 2, "f32": 4, "f64": 8}


def widen(bits: np.ndarray, kind: str) -> np.ndarray:
    """The numbers that `bits` stand for, float64, exactly."""
    if kind == "bf16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    return bits.view({"f16": np.float16, "f32": np.float32, "f64": np.float64}[kind]).astype(np.float64)


def narrow(x: np.ndarray, kind: str, mode: str = "rn") -> np.ndarray:
    """The bits of float64 `x` rounded to `kind`: rn to nearest even, rz to zero, rm down, rp up."""
    if kind == "f64":
        return x.view(np.uint64)
    bits = nearest(x, kind)
    if mode != "rn":
        rounded = widen(bits, kind)
        upward, downward = rounded > x, rounded < x
        wrong = {"rz": np.where(x < 0, downward, upward), "rm": upward, "rp": downward}[mode]
        # The bits of a float are its sign and its magnitude: one less is the neighbour nearer to zero, one more the farther.
        inward = (rounded > x) ^ np.signbit(rounded)
        neighbour = np.where(inward, bits - 1, bits + 1).astype(bits.dtype)
        bits = np.where(wrong, neighbour, bits)
    return np.where(np.isnan(x), bits.dtype.type(CANONICAL_NAN[kind]), bits)


def nearest(x: np.ndarray, kind: str) -> np.ndarray:
    if kind == "f32":
        return x.astype(np.float32).view(np.uint32)
    if kind == "f16":
        return x.astype(np.float16).view(np.uint16)
    single = to_odd_single(x).view(np.uint32)
    return ((single + np.uint32(0x7FFF) + ((single >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def to_odd_single(x: np.ndarray) -> np.ndarray:
    """float64 to float32, to the odd one of the two neighbours where it is between them."""
    single = x.astype(np.float32)
    inexact = (single != x) & ~np.isnan(x) & ((single.view(np.uint32) & np.uint32(1)) == 0)
    return np.where(inexact, np.nextafter(single, np.sign(x - single).astype(np.float32) * np.inf), single)


def sum_to_odd(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a + b in float64, rounded to odd. Exact operands of f32 or less, or products of two such, cannot overflow it."""
    total = a + b
    back = total - a
    lost = (a - (total - back)) + (b - back)
    inexact = np.isfinite(lost) & (lost != 0) & ((total.view(np.uint64) & np.uint64(1)) == 0)
    return np.where(inexact, np.nextafter(total, np.sign(lost) * np.inf), total)


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray, kind: str, mode: str = "rn") -> np.ndarray:
    """Bits of a·b + c, rounded once. The product of two numbers of 24 bits is exact in float64."""
    return narrow(sum_to_odd(widen(a, kind) * widen(b, kind), widen(c, kind)), kind, mode)


def add(a: np.ndarray, b: np.ndarray, kind: str, mode: str = "rn") -> np.ndarray:
    if kind == "f32" and mode == "rn":
        return (a.view(np.float32) + b.view(np.float32)).view(np.uint32)
    return narrow(sum_to_odd(widen(a, kind), widen(b, kind)), kind, mode)


def multiply(a: np.ndarray, b: np.ndarray, kind: str, mode: str = "rn") -> np.ndarray:
    if kind == "f32" and mode == "rn":
        return (a.view(np.float32) * b.view(np.float32)).view(np.uint32)
    return narrow(widen(a, kind) * widen(b, kind), kind, mode)


def flush(bits: np.ndarray, kind: str) -> np.ndarray:
    """.ftz: denormals become zero of the same sign. It concerns f32 alone, as in PTX (and f16, where it is written)."""
    tiny = np.abs(widen(bits, kind)) < SMALLEST_NORMAL[kind]
    return np.where(tiny, bits & sign_bit(bits), bits)


def saturate(bits: np.ndarray, kind: str) -> np.ndarray:
    """.sat: to [0, 1], NaN to 0."""
    x = widen(bits, kind)
    return narrow(np.where(x > 0, np.minimum(x, 1.0), 0.0), kind)


def sign_bit(bits: np.ndarray) -> np.generic:
    return bits.dtype.type(1 << (8 * bits.dtype.itemsize - 1))


def extreme(a: np.ndarray, b: np.ndarray, kind: str, largest: bool, keep_nan: bool) -> np.ndarray:
    """min or max: -0 is below +0; the other operand where one is NaN, or NaN where `keep_nan`."""
    x, y = widen(a, kind), widen(b, kind)
    first = (x > y) if largest else (x < y)
    first |= (x == y) & (np.signbit(x) != largest)
    result = np.where(np.isnan(y) | (first & ~np.isnan(x)), a, b)
    nan = (np.isnan(x) | np.isnan(y)) if keep_nan else (np.isnan(x) & np.isnan(y))
    return np.where(nan, a.dtype.type(CANONICAL_NAN[kind]), result)


def to_integer(x: np.ndarray, mode: str, dtype: np.dtype, from_double: bool) -> np.ndarray:
    """float64 to an integer type: rni, rzi, rmi or rpi, clamped to its range; NaN to 0, or to the top bit for 64 bits."""
    whole = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[mode](x)
    limits = np.iinfo(dtype)
    inside = (whole >= float(limits.min)) & (whole < float(limits.max) + (0.0 if dtype.itemsize == 8 else 1.0))
    result = np.where(inside, whole, 0.0).astype(dtype)
    result = np.where(inside, result, np.where(whole > 0, dtype.type(limits.max), dtype.type(limits.min)))
    nan = np.array(1 << 63, np.uint64).view(dtype) if dtype.itemsize == 8 else dtype.type(limits.min if from_double else 0)
    return np.where(np.isnan(x), nan, result)
