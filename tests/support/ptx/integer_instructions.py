"""Integers, bits and predicates: what add.s32, mul.hi.u32, shf, prmt, setp, selp and the like compute."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature

import numpy as np

from tests.support.ptx.float_instructions import FLOATS, build_float
from tests.support.ptx.floats import flush, widen
from tests.support.ptx.machine import NUMPY, Decoder, Execute, instruction

INTEGERS = tuple(f"{kind}{bits}" for kind in "usb" for bits in (16, 32, 64))
U32, U64 = np.uint32, np.uint64


def elementwise(decoder: Decoder, kinds: str | list[str], compute: Callable[..., np.ndarray]) -> Execute:
    """The first operand becomes compute(the others); `kinds` are their types, or one for all."""
    if isinstance(kinds, str):
        kinds = [kinds] * len(signature(compute).parameters) if not isinstance(compute, np.ufunc) else [kinds] * compute.nin
    target, *sources = decoder.operands(len(kinds) + 1)
    write = decoder.writer(target)
    readers = [decoder.reader(source, kind) for source, kind in zip(sources, kinds, strict=True)]
    return lambda: write(compute(*(read() for read in readers)))


def widened(a: np.ndarray) -> np.ndarray:
    """The same integers in twice the bits."""
    return a.astype(f"{a.dtype.kind}{2 * a.dtype.itemsize}")


def signed_or_unsigned(decoder: Decoder) -> str:
    return decoder.need(*(name for name in INTEGERS if name[0] != "b"))


# -- arithmetic ----------------------------------------------------------------------------------------------------------


@instruction("add", "sub")
def build_add(decoder: Decoder) -> Execute:
    if not decoder.modifiers or decoder.modifiers[-1] not in INTEGERS:
        return build_float(decoder)
    operation = {"add": np.add, "sub": np.subtract}[decoder.item.base]
    return elementwise(decoder, signed_or_unsigned(decoder), operation)


@instruction("mul", "mad")
def build_multiply(decoder: Decoder) -> Execute:
    if not decoder.modifiers or decoder.modifiers[-1] not in INTEGERS:
        return build_float(decoder)
    part, kind = decoder.need("lo", "hi", "wide"), signed_or_unsigned(decoder)
    product = {"lo": np.multiply, "hi": high_half, "wide": lambda a, b: widened(a) * widened(b)}[part]
    if part == "wide" and kind[1:] == "64":
        raise decoder.unknown("form: .wide of 64 bits")
    if decoder.item.base == "mul":
        return elementwise(decoder, kind, product)
    addend = f"{kind[0]}{2 * int(kind[1:])}" if part == "wide" else kind
    return elementwise(decoder, [kind, kind, addend], lambda a, b, c: product(a, b) + c)


def high_half(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The upper half of the double-width product."""
    bits = 8 * a.dtype.itemsize
    if bits < 64:
        return (widened(a) * widened(b) >> bits).astype(a.dtype)
    x, y, low, half = a.view(U64), b.view(U64), U64(0xFFFFFFFF), U64(32)
    x0, x1, y0, y1 = x & low, x >> half, y & low, y >> half
    middle = x1 * y0 + (x0 * y0 >> half)
    high = x1 * y1 + (middle >> half) + ((x0 * y1 + (middle & low)) >> half)
    if a.dtype.kind == "i":
        high = high - np.where(a < 0, y, U64(0)) - np.where(b < 0, x, U64(0))
    return high.view(a.dtype)


@instruction("div", "rem")
def build_divide(decoder: Decoder) -> Execute:
    if not decoder.modifiers or decoder.modifiers[-1] not in INTEGERS:
        return build_float(decoder)

    def divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        # fmod has the sign of a, as in C. Division by zero is undefined in PTX: all ones, so that it is noticed.
        safe = np.where(b == 0, b.dtype.type(1), b)
        remainder = np.fmod(a, safe)
        if decoder.item.base == "rem":
            return np.where(b == 0, a, remainder)
        return np.where(b == 0, ~np.zeros_like(a), (a - remainder) // safe)

    return elementwise(decoder, signed_or_unsigned(decoder), divide)


@instruction("min", "max")
def build_extreme(decoder: Decoder) -> Execute:
    if not decoder.modifiers or decoder.modifiers[-1] not in INTEGERS:
        return build_float(decoder)
    return elementwise(decoder, signed_or_unsigned(decoder), {"min": np.minimum, "max": np.maximum}[decoder.item.base])


@instruction("abs", "neg")
def build_negate(decoder: Decoder) -> Execute:
    if not decoder.modifiers or decoder.modifiers[-1] not in INTEGERS:
        return build_float(decoder)
    kind = decoder.need("s16", "s32", "s64")
    return elementwise(decoder, kind, {"abs": np.abs, "neg": np.negative}[decoder.item.base])


# -- bits ----------------------------------------------------------------------------------------------------------------


@instruction("and", "or", "xor", "not")
def build_logic(decoder: Decoder) -> Execute:
    kind = decoder.need("b16", "b32", "b64", "pred")
    operation = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert}[decoder.item.base]
    return elementwise(decoder, kind, operation)


@instruction("shl", "shr")
def build_shift(decoder: Decoder) -> Execute:
    kind = decoder.need(*INTEGERS)
    bits, left = int(kind[1:]), decoder.item.base == "shl"

    def shift(a: np.ndarray, amount: np.ndarray) -> np.ndarray:
        clamped = np.minimum(amount, bits - 1).astype(a.dtype)
        shifted = a << clamped if left else a >> clamped
        # A shift by the width or more leaves nothing but, to the right, the sign.
        return shifted if a.dtype.kind == "i" and not left else np.where(amount >= bits, a.dtype.type(0), shifted)

    return elementwise(decoder, [kind, "u32"], shift)


@instruction("shf")
def build_funnel_shift(decoder: Decoder) -> Execute:
    direction, mode = decoder.need("l", "r"), decoder.need("wrap", "clamp")
    decoder.need("b32")

    def shift(low: np.ndarray, high: np.ndarray, amount: np.ndarray) -> np.ndarray:
        amount = (amount & U32(31) if mode == "wrap" else np.minimum(amount, U32(32))).astype(U64)
        both = (high.astype(U64) << U64(32)) | low
        return ((both << amount) >> U64(32) if direction == "l" else both >> amount).astype(U32)

    return elementwise(decoder, "b32", shift)


@instruction("bfe")
def build_extract(decoder: Decoder) -> Execute:
    kind = decoder.need("u32", "s32", "u64", "s64")
    wide = np.dtype(f"{'i' if kind[0] == 's' else 'u'}8")

    def extract(a: np.ndarray, position: np.ndarray, length: np.ndarray) -> np.ndarray:
        position, length = position & U32(0xFF), np.minimum(length & U32(0xFF), U32(64))
        moved = a.astype(wide) >> np.minimum(position, 63).astype(wide)
        if kind[0] == "u":
            moved = np.where(position > 63, U64(0), moved)
        unused = np.minimum(64 - length.astype(np.int64), 63).astype(wide)
        return np.where(length == 0, wide.type(0), (moved << unused) >> unused).astype(a.dtype)

    return elementwise(decoder, [kind, "u32", "u32"], extract)


@instruction("bfi")
def build_insert(decoder: Decoder) -> Execute:
    kind = decoder.need("b32", "b64")

    def insert(a: np.ndarray, b: np.ndarray, position: np.ndarray, length: np.ndarray) -> np.ndarray:
        position, length = (position & U32(0xFF)).astype(U64), (length & U32(0xFF)).astype(U64)
        ones = np.where(length > 63, ~U64(0), (U64(1) << np.minimum(length, U64(63))) - U64(1))
        shift = np.minimum(position, U64(63))
        mask = np.where(position > 63, U64(0), ones << shift)
        return ((b & ~mask) | ((a.astype(U64) << shift) & mask)).astype(a.dtype)

    return elementwise(decoder, [kind, kind, "u32", "u32"], insert)


@instruction("lop3")
def build_lookup(decoder: Decoder) -> Execute:
    decoder.need("b32")

    def lookup(a: np.ndarray, b: np.ndarray, c: np.ndarray, table: np.ndarray) -> np.ndarray:
        result = np.zeros_like(a)
        for row in range(8):
            chosen = (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
            result |= np.where((table >> U32(row)) & U32(1), chosen, U32(0))
        return result

    return elementwise(decoder, "b32", lookup)


@instruction("prmt")
def build_permute(decoder: Decoder) -> Execute:
    decoder.need("b32")

    def permute(a: np.ndarray, b: np.ndarray, selector: np.ndarray) -> np.ndarray:
        both, result = (b.astype(U64) << U64(32)) | a, np.zeros_like(a)
        for place in range(4):
            choice = (selector >> U32(4 * place)) & U32(15)
            byte = ((both >> (U64(8) * (choice & U32(7)))) & U64(0xFF)).astype(U32)
            sign = np.where(byte & U32(0x80), U32(0xFF), U32(0))
            result |= np.where(choice & U32(8), sign, byte) << U32(8 * place)
        return result

    target, *sources, selector = decoder.operands(4)
    write, read_selector = decoder.writer(target), decoder.reader(selector, "b32")
    # Packing two bytes may leave the upper two to a register that nothing sets.
    readers = [decoder.packed_part(source, 4) for source in sources]
    return lambda: write(permute(*(read() for read in readers), read_selector()))


@instruction("popc", "clz", "brev")
def build_count(decoder: Decoder) -> Execute:
    kind, base = decoder.need("b32", "b64"), decoder.item.base

    def count(a: np.ndarray) -> np.ndarray:
        bits = np.unpackbits(a.astype(a.dtype.newbyteorder(">")).view(np.uint8)).reshape(a.size, -1)
        if base == "popc":
            return bits.sum(axis=1, dtype=U32)
        if base == "clz":
            return np.where(bits.any(axis=1), bits.argmax(axis=1), bits.shape[1]).astype(U32)
        return np.packbits(bits[:, ::-1], axis=1).view(a.dtype.newbyteorder(">")).reshape(-1).astype(a.dtype)

    return elementwise(decoder, kind, count)


# -- comparisons ---------------------------------------------------------------------------------------------------------

COMPARE = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal}
COMPARE |= {"lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal}
UNORDERED = {"equ": "eq", "neu": "ne", "ltu": "lt", "leu": "le", "gtu": "gt", "geu": "ge"}
COMBINE = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def comparison(name: str, is_float: bool) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Ordered comparisons are false where a NaN is, also ne; unordered ones (equ, ...) are true."""
    if not is_float:
        return COMPARE[name]
    if name in ("num", "nan"):
        return lambda a, b: (np.isnan(a) | np.isnan(b)) == (name == "nan")
    if name in UNORDERED:
        return lambda a, b: COMPARE[UNORDERED[name]](a, b) | np.isnan(a) | np.isnan(b)
    return lambda a, b: COMPARE[name](a, b) & ~np.isnan(a) & ~np.isnan(b)


@instruction("setp")
def build_set_predicate(decoder: Decoder) -> Execute:
    kind = decoder.need(*INTEGERS, *FLOATS)
    is_float, ftz = kind in FLOATS, decoder.take("ftz")
    names = ("eq", "ne", "lt", "le", "gt", "ge", *((*UNORDERED, "num", "nan") if is_float else ("lo", "ls", "hi", "hs")))
    compare, combine = comparison(decoder.need(*names), is_float), decoder.take(*COMBINE)
    target, first, second, *rest = decoder.operands(4 if combine else 3)
    true, _, false = str(target).partition("|")
    write, write_false = decoder.writer(true), decoder.writer(false) if false else None
    readers = [decoder.reader(operand, kind) for operand in (first, second)]

    def numbers(bits: np.ndarray) -> np.ndarray:
        return widen(flush(bits, kind) if ftz else bits, kind) if is_float else bits

    with_predicate = decoder.reader(rest[0], "pred") if combine else None

    def execute() -> None:
        result = compare(*(numbers(read()) for read in readers))
        values = (result, ~result)
        if with_predicate is not None:
            other = with_predicate()
            values = (COMBINE[combine](result, other), COMBINE[combine](~result, other))
        write(values[0])
        if write_false is not None:
            write_false(values[1])

    return execute


@instruction("selp")
def build_select(decoder: Decoder) -> Execute:
    kind = decoder.need(*(kind for kind in NUMPY if kind != "pred"))
    return elementwise(decoder, [kind, kind, "pred"], lambda a, b, predicate: np.where(predicate, a, b))
