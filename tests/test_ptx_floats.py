"""Floating point in tests/support/ptx, against known answers and exact rational arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from tests.support.ptx import floats
from tests.support.ptx_snippets import apply, f32, u32

# -- roundings -----------------------------------------------------------------------------------------------------------

FORMATS = {"f16": (11, -14, 15), "bf16": (8, -126, 127), "f32": (24, -126, 127)}


def exactly_rounded(x: Fraction, kind: str, mode: str) -> float:
    """`x` rounded once, by integers alone."""
    precision, lowest, highest = FORMATS[kind]
    if x == 0:
        return 0.0
    size = abs(x)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= size < Fraction(2) ** exponent
    unit = Fraction(2) ** (max(exponent, lowest) - precision + 1)
    down, rest = divmod(size, unit)
    up = {
        "rn": rest * 2 > unit or (rest * 2 == unit and down % 2 == 1),
        "rz": False,
        "rm": x < 0 and rest > 0,
        "rp": x > 0 and rest > 0,
    }[mode]
    magnitude = (down + up) * unit
    if magnitude > (2 - Fraction(2) ** (1 - precision)) * Fraction(2) ** highest:
        nearest_is_infinite = mode == "rn" or mode == ("rm" if x < 0 else "rp")
        largest = float((2 - Fraction(2) ** (1 - precision)) * Fraction(2) ** highest)
        magnitude = np.inf if nearest_is_infinite else largest
    return float(np.copysign(float(magnitude), -1 if x < 0 else 1))


def random_bits(kind: str, count: int, seed: int) -> np.ndarray:
    """Finite numbers of every exponent; a third of them near 1, where sums cancel."""
    generator = np.random.default_rng(seed)
    dtype = np.uint32 if kind == "f32" else np.uint16
    bits = generator.integers(0, np.iinfo(dtype).max, count, dtype, endpoint=True)
    bits = np.where(np.arange(count) % 3 == 0, floats.narrow(generator.uniform(-2, 2, count), kind), bits)
    return bits[np.isfinite(floats.widen(bits, kind))]


@np.errstate(all="ignore")
@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("kind", FORMATS)
def test_fma_rounds_once(kind: str, mode: str) -> None:
    a, b, c = (random_bits(kind, 700, seed)[:600] for seed in range(3))
    # Products that nearly cancel c, and halves of a last place: where a second rounding would show.
    product = floats.narrow(floats.widen(a, kind) * floats.widen(b, kind), kind)
    c[::4] = np.where(np.isfinite(floats.widen(product, kind)), product ^ floats.sign_bit(product), c)[::4]
    numbers = [floats.widen(bits, kind) for bits in (a, b, c)]
    expected = [
        exactly_rounded(Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)), kind, mode)
        for x, y, z in zip(*numbers, strict=True)
    ]
    np.testing.assert_array_equal(floats.widen(floats.fma(a, b, c, kind, mode), kind), expected)


@np.errstate(all="ignore")
@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("kind", FORMATS)
def test_narrow_rounds_once(kind: str, mode: str) -> None:
    generator = np.random.default_rng(3)
    x = np.concatenate([np.ldexp(generator.uniform(-2, 2, 500), generator.integers(-160, 140, 500)), [65519.99, 65520.0, -1e39]])
    expected = [exactly_rounded(Fraction(float(value)), kind, mode) for value in x]
    np.testing.assert_array_equal(floats.widen(floats.narrow(x, kind, mode), kind), expected)


def test_fma_is_not_a_product_and_a_sum() -> None:
    a, c = f32(1 + 2**-12), f32(-1)
    assert apply("fma.rn.f32 %d, %a, %a, %b;", np.float32, a, c) == np.float32(2**-11 + 2**-24)
    # Just below the middle of two floats, by less than float64 holds: rounding to float64 first would go up.
    a, b, c = f32(1 - 2**-16), f32(2**-24 * (1 + 2**-16)), f32(1 + 2**-23)
    assert apply("fma.rn.f32 %d, %a, %b, %c;", np.float32, a, b, c) == np.float32(1 + 2**-23)
    product = apply("mul.f32 %r1, %a, %a;\nadd.f32 %d, %r1, %b;", np.float32, f32(1 + 2**-12), f32(-1))
    assert product == np.float32(2**-11)


BF16 = [
    ("rn", 1 + 2**-8, 0x3F80),
    ("rn", 1 + 2**-8 + 2**-20, 0x3F81),
    ("rn", 1 + 3 * 2**-8, 0x3F82),
    ("rz", 1 + 3 * 2**-8, 0x3F81),
    ("rz", -1 - 3 * 2**-8, 0xBF81),
    ("rn", float("nan"), 0x7FFF),
    ("rn", 3.4e38, 0x7F80),
    ("rz", 3.4e38, 0x7F7F),
    ("rn", -float("inf"), 0xFF80),
    ("rn", 2.0**-133, 0x0001),
    ("rn", 2.0**-134, 0x0000),
]
F16 = [
    ("rn", 65519.996, 0x7BFF),
    ("rn", 65520.0, 0x7C00),
    ("rz", 1e9, 0x7BFF),
    ("rn", 2.0**-25, 0x0000),
    ("rn", 2.0**-25 * 1.01, 0x0001),
    ("rz", 2.0**-24 * 1.99, 0x0001),
    ("rn", -0.0, 0x8000),
    ("rn", 1 + 2**-11, 0x3C00),
    ("rn", 1 + 3 * 2**-11, 0x3C02),
    ("rm", -1 - 2**-20, 0xBC01),
    ("rp", 1 + 2**-20, 0x3C01),
]


@pytest.mark.parametrize(("kind", "mode", "x", "bits"), [("bf16", *row) for row in BF16] + [("f16", *row) for row in F16])
def test_convert_to_16_bits(kind: str, mode: str, x: float, bits: int) -> None:
    assert apply(f"cvt.{mode}.{kind}.f32 %d, %a;", np.uint16, f32(x)) == bits


def test_convert_packs_the_first_operand_high() -> None:
    a, b = f32(1.0), f32(-2.0)
    assert apply("cvt.rn.bf16x2.f32 %d, %a, %b;", np.uint32, a, b) == 0x3F80C000
    assert apply("cvt.rn.f16x2.f32 %d, %a, %b;", np.uint32, a, b) == 0x3C00C000


def test_convert_from_16_bits() -> None:
    assert apply("cvt.f32.bf16 %d, %a;", np.float32, np.array([0xC040], np.uint16)) == -3
    assert apply("cvt.f32.f16 %d, %a;", np.float32, np.array([0x0001], np.uint16)) == 2.0**-24


@pytest.mark.parametrize(
    ("form", "x", "expected"),
    [
        ("cvt.rni.s32.f32", 2.5, 2),
        ("cvt.rni.s32.f32", -3.5, -4),
        ("cvt.rzi.s32.f32", -3.9, -3),
        ("cvt.rmi.s32.f32", -3.1, -4),
        ("cvt.rpi.s32.f32", 3.1, 4),
        ("cvt.rzi.s32.f32", 3e9, 2**31 - 1),
        ("cvt.rzi.s32.f32", -3e9, -(2**31)),
        ("cvt.rzi.u32.f32", -1.0, 0),
        ("cvt.rzi.u32.f32", 3e9, 3_000_000_000),
        ("cvt.rzi.u32.f32", 5e9, 2**32 - 1),
        ("cvt.rzi.s32.f32", float("nan"), 0),
    ],
)
def test_convert_to_integers(form: str, x: float, expected: int) -> None:
    assert apply(f"{form} %d, %a;", np.uint32, f32(x)) == expected & 0xFFFFFFFF


def test_convert_integers() -> None:
    assert apply("cvt.rn.f32.u32 %d, %a;", np.float32, u32(2**24 + 1)) == 2**24
    assert apply("cvt.rn.f32.s32 %d, %a;", np.float32, u32(-5)) == -5
    assert apply("cvt.rz.f32.u32 %d, %a;", np.float32, u32(2**24 + 3)) == 2**24 + 2
    assert apply("cvt.s64.s32 %d, %a;", np.int64, u32(-5)) == -5
    assert apply("cvt.u64.u32 %d, %a;", np.int64, u32(-5)) == 2**32 - 5
    assert apply("cvt.s32.s8 %d, %a;", np.int32, u32(0x1FF)) == -1
    assert apply("cvt.u16.u32 %d, %a;", np.uint16, u32(0x12345)) == 0x2345


def test_mixed_precision() -> None:
    half, single = np.array([0xBC00], np.uint16), f32(0.75)
    assert apply("add.rn.f32.f16 %d, %a, %b;", np.float32, half, single) == -0.25
    assert apply("sub.f32.f16 %d, %a, %b;", np.float32, half, single) == -1.75
    assert apply("fma.rn.f32.bf16 %d, %a, %a, %b;", np.float32, np.array([0xC040], np.uint16), single) == 9.75


def test_flush_to_zero_only_where_written() -> None:
    tiny = f32(-1e-39)
    assert apply("add.f32 %d, %a, %a;", np.float32, tiny) == np.float32(2) * tiny
    flushed = apply("add.ftz.f32 %d, %a, %a;", np.float32, tiny)
    assert flushed == 0 and np.signbit(flushed)
    assert apply("ex2.approx.f32 %d, %a;", np.float32, f32(-130)) == np.float32(2.0**-130)
    assert apply("ex2.approx.ftz.f32 %d, %a;", np.float32, f32(-130)) == 0


def test_saturate() -> None:
    found = apply("add.sat.f32 %d, %a, %b;", np.float32, f32(1, -1, np.nan, 0.25), f32(1, 0, 0, 0.25))
    np.testing.assert_array_equal(found, [1, 0, 0, 0.5])


@np.errstate(over="ignore")
def test_division_and_roots_are_correctly_rounded() -> None:
    a, b = f32(1, 1, 2e-38, 7), f32(3, 3e38, 3, 1e-45)
    np.testing.assert_array_equal(apply("div.rn.f32 %d, %a, %b;", np.float32, a, b), a / b)
    np.testing.assert_array_equal(apply("rcp.rn.f32 %d, %b;", np.float32, a, b), np.float32(1) / b)
    np.testing.assert_array_equal(apply("sqrt.rn.f32 %d, %b;", np.float32, a, b), np.sqrt(b))


# -- minima, comparisons -------------------------------------------------------------------------------------------------


def test_minimum_and_maximum() -> None:
    a, b = f32(np.nan, 1, np.nan, 0.0, -0.0), f32(2, np.nan, np.nan, -0.0, 0.0)
    found = apply("min.f32 %d, %a, %b;", np.float32, a, b)
    np.testing.assert_array_equal(found, [2, 1, np.nan, 0, 0])
    assert np.signbit(found[3:]).all()
    found = apply("max.f32 %d, %a, %b;", np.float32, a, b)
    np.testing.assert_array_equal(found, [2, 1, np.nan, 0, 0])
    assert not np.signbit(found[3:]).any()
    np.testing.assert_array_equal(apply("max.NaN.f32 %d, %a, %b;", np.float32, a, b), [np.nan, np.nan, np.nan, 0, 0])
    assert apply("min.s32 %d, %a, %b;", np.int32, u32(-1), u32(1)) == -1
    assert apply("min.u32 %d, %a, %b;", np.int32, u32(-1), u32(1)) == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lt", [1, 0, 0, 0]),
        ("ne", [1, 0, 1, 0]),
        ("ltu", [1, 0, 0, 1]),
        ("neu", [1, 0, 1, 1]),
        ("equ", [0, 1, 0, 1]),
        ("geu", [0, 1, 1, 1]),
        ("num", [1, 1, 1, 0]),
        ("nan", [0, 0, 0, 1]),
    ],
)
def test_compare_floats(name: str, expected: list[int]) -> None:
    a, b = f32(1, 2, 3, np.nan), f32(2, 2, 2, 2)
    text = f"setp.{name}.f32 %p1, %a, %b;\nselp.b32 %d, 1, 0, %p1;"
    np.testing.assert_array_equal(apply(text, np.uint32, a, b), expected)


def test_compare_integers_and_combine() -> None:
    a, b = u32(-1, 1, 5), u32(1, -1, 5)
    select = "selp.b32 %d, 1, 0, %p1;"
    np.testing.assert_array_equal(apply(f"setp.lt.s32 %p1, %a, %b;\n{select}", np.uint32, a, b), [1, 0, 0])
    np.testing.assert_array_equal(apply(f"setp.lo.u32 %p1, %a, %b;\n{select}", np.uint32, a, b), [0, 1, 0])
    both = "setp.eq.s32 %p2, %a, 5;\nsetp.ge.and.s32 %p1|%p3, %a, %b, !%p2;\n"
    np.testing.assert_array_equal(apply(both + select, np.uint32, a, b), [0, 1, 0])
    np.testing.assert_array_equal(apply(both + "selp.b32 %d, 1, 0, %p3;", np.uint32, a, b), [1, 0, 0])
