"""Floating point: arithmetic, functions and conversions. floats.py says which of them are exact."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.support.ptx import floats
from tests.support.ptx.floats import narrow, sign_bit, widen
from tests.support.ptx.machine import NUMPY, Decoder, Execute, Read, instruction

FLOATS = ("f16", "bf16", "f32", "f64")
PACKED = {"f16x2": "f16", "bf16x2": "bf16", "f32x2": "f32"}
ROUNDINGS = ("rn", "rz", "rm", "rp")
TO_INTEGER = ("rni", "rzi", "rmi", "rpi")
Compute = Callable[..., np.ndarray]

# Single-argument functions, in float64.
FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "ex2": np.exp2,
    "lg2": np.log2,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "rcp": lambda x: 1 / x,
}


@instruction("fma", "copysign")
@instruction(*(name for name in FUNCTIONS))
def build_float(decoder: Decoder) -> Execute:
    """One arithmetic instruction on f16, bf16 or f32, or on two of them packed in a register."""
    if decoder.modifiers[-2:-1] == ["f32"] and decoder.modifiers[-1] in ("f16", "bf16"):
        return build_mixed(decoder)
    kind = decoder.need("f16", "bf16", "f32", *PACKED)
    element, ftz, sat = PACKED.get(kind, kind), decoder.take("ftz"), decoder.take("sat")
    compute = computation(decoder, element)
    bits = NUMPY[kind]

    def unpack(read: Read) -> Read:
        def halves() -> np.ndarray:
            values = read().view(NUMPY[element])
            return floats.flush(values, element) if ftz else values

        return halves

    write = decoder.writer(decoder.item.operands[0])
    readers = [unpack(decoder.reader(operand, kind)) for operand in decoder.item.operands[1:]]

    def execute() -> None:
        result = compute(*(read() for read in readers))
        result = floats.saturate(result, element) if sat else result
        result = floats.flush(result, element) if ftz else result
        write(np.ascontiguousarray(result).view(bits))

    return execute


def build_mixed(decoder: Decoder) -> Execute:
    """sm_100 and later: add, sub, fma.f32.f16 and .bf16: the last operand and the result f32, the others of 16 bits."""
    if decoder.item.base not in ("add", "sub", "fma"):
        raise decoder.unknown("form")
    narrower, sat = decoder.modifiers.pop(), decoder.take("sat")
    decoder.need("f32")
    compute, (target, *sources) = computation(decoder, "f32"), decoder.item.operands
    kinds = [narrower] * (len(sources) - 1) + ["f32"]
    write = decoder.writer(target)
    readers = [decoder.reader(source, kind) for source, kind in zip(sources, kinds, strict=True)]

    def execute() -> None:
        values = (narrow(widen(read(), kind), "f32") for read, kind in zip(readers, kinds, strict=True))
        result = compute(*values)
        write(floats.saturate(result, "f32") if sat else result)

    return execute


def computation(decoder: Decoder, kind: str) -> Compute:
    """From the operands' bits to the result's, in `kind`."""
    base = decoder.item.base
    if base in ("add", "sub", "mul", "fma", "mad"):
        decoder.operands(4 if base in ("fma", "mad") else 3)
        mode = decoder.take(*ROUNDINGS) or "rn"
        return {
            "add": lambda a, b: floats.add(a, b, kind, mode),
            "sub": lambda a, b: floats.add(a, b ^ sign_bit(b), kind, mode),
            "mul": lambda a, b: floats.multiply(a, b, kind, mode),
        }.get(base, lambda a, b, c: floats.fma(a, b, c, kind, mode))
    if base in ("min", "max"):
        return extreme(decoder, kind)
    if base in ("abs", "neg", "copysign"):
        decoder.operands(3 if base == "copysign" else 2)
        return {
            "abs": lambda a: a & ~sign_bit(a),
            "neg": lambda a: a ^ sign_bit(a),
            "copysign": lambda a, b: (b & ~sign_bit(b)) | (a & sign_bit(a)),
        }[base]
    if base == "div":
        decoder.operands(3)
        decoder.need("rn", "full", "approx")
        return in_single(decoder, kind, np.divide)
    decoder.operands(2)
    if base in ("sqrt", "rcp") and decoder.take("rn"):
        return in_single(decoder, kind, {"sqrt": np.sqrt, "rcp": lambda x: np.float32(1) / x}[base])
    decoder.need("approx")
    return lambda a: narrow(FUNCTIONS[base](widen(a, kind)), kind)


def in_single(decoder: Decoder, kind: str, compute: Compute) -> Compute:
    """In float32 itself, where IEEE arithmetic rounds once, also to a denormal."""
    if kind != "f32":
        raise decoder.unknown(f"type .{kind}")
    return lambda *bits: compute(*(value.view(np.float32) for value in bits)).view(np.uint32)


def extreme(decoder: Decoder, kind: str) -> Compute:
    """min and max of two operands, or three on sm_100 and later."""
    keep_nan, largest = decoder.take("NaN") is not None, decoder.item.base == "max"
    decoder.operands(3, 4)

    def compute(first: np.ndarray, *others: np.ndarray) -> np.ndarray:
        for other in others:
            first = floats.extreme(first, other, kind, largest, keep_nan)
        return first

    return compute


# -- conversions ---------------------------------------------------------------------------------------------------------


@instruction("cvt")
def build_convert(decoder: Decoder) -> Execute:
    """cvt{.rounding}{.ftz}{.sat}.to.from"""
    if len(decoder.modifiers) < 2:
        raise decoder.unknown("form")
    source, target = decoder.modifiers.pop(), decoder.modifiers.pop()
    if target in PACKED and source == "f32":
        return build_pack(decoder, PACKED[target])
    if target not in NUMPY or source not in NUMPY or "pred" in (source, target) or {source, target} & set(PACKED):
        raise decoder.unknown(f"conversion from .{source} to .{target}")
    decoder.operands(2)
    if target in FLOATS:
        convert = from_float(decoder, source, target) if source in FLOATS else from_integer(decoder, target)
    elif source in FLOATS:
        convert = float_to_integer(decoder, source, target)
    else:
        convert = integer_to_integer(decoder, target)
    read, write = decoder.reader(decoder.item.operands[1], source), decoder.writer(decoder.item.operands[0])
    return lambda: write(convert(read()))


def build_pack(decoder: Decoder, element: str) -> Execute:
    """cvt.rn.bf16x2.f32 d, a, b: a goes into the upper half."""
    mode, (target, *sources) = decoder.need("rn", "rz"), decoder.operands(3)
    write, (high, low) = decoder.writer(target), [decoder.reader(operand, "f32") for operand in sources]

    def execute() -> None:
        halves = [narrow(widen(read(), "f32"), element, mode) for read in (low, high)]
        write(np.stack(halves, axis=1).reshape(-1).view(np.uint32))

    return execute


def from_float(decoder: Decoder, source: str, target: str) -> Compute:
    ftz, sat = decoder.take("ftz"), decoder.take("sat")
    whole, mode = decoder.take(*TO_INTEGER), decoder.take(*ROUNDINGS)
    narrows = floats.SIZE[target] < floats.SIZE[source] or {source, target} == {"f16", "bf16"}
    if narrows != (mode is not None) or (whole and source != target):
        raise decoder.unknown("rounding: a narrowing conversion has one, no other has")
    rounding = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}.get(whole or "", lambda x: x)

    def convert(bits: np.ndarray) -> np.ndarray:
        bits = floats.flush(bits, source) if ftz and source == "f32" else bits
        result = narrow(rounding(widen(bits, source)), target, mode or "rn")
        result = floats.flush(result, target) if ftz and target == "f32" else result
        return floats.saturate(result, target) if sat else result

    return convert


def from_integer(decoder: Decoder, target: str) -> Compute:
    mode = decoder.need(*ROUNDINGS)

    def convert(a: np.ndarray) -> np.ndarray:
        if a.dtype.itemsize < 8:
            return narrow(a.astype(np.float64), target, mode)
        # 64 bits do not fit into a float64; numpy's own conversion to float32 rounds once, to nearest.
        if (target, mode) == ("f32", "rn"):
            return a.astype(np.float32).view(np.uint32)
        if (target, mode) == ("f64", "rn"):
            return a.astype(np.float64).view(np.uint64)
        raise decoder.unknown("conversion of 64 bits")

    return convert


def float_to_integer(decoder: Decoder, source: str, target: str) -> Compute:
    mode, ftz, _ = decoder.need(*TO_INTEGER), decoder.take("ftz"), decoder.take("sat")

    def convert(bits: np.ndarray) -> np.ndarray:
        bits = floats.flush(bits, source) if ftz and source == "f32" else bits
        return floats.to_integer(widen(bits, source), mode, NUMPY[target], source == "f64")

    return convert


def integer_to_integer(decoder: Decoder, target: str) -> Compute:
    dtype = NUMPY[target]
    if decoder.take("sat") is None:
        return lambda a: a.astype(dtype)
    limits = np.iinfo(dtype)
    return lambda a: np.array([min(max(int(value), limits.min), limits.max) for value in a], dtype)
