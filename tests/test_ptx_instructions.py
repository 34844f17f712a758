"""Integers, lanes, control flow and memory in tests/support/ptx, against known answers; and the faults it has to find."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support import ptx
from tests.support.ptx_snippets import apply, entry, f32, u32

THREAD = np.arange(32)


# -- integers ------------------------------------------------------------------------------------------------------------


def test_products() -> None:
    a, b = u32(-1, 0x80000000, 0xD2511F53), u32(-1, 2, 0xCD9E8D57)
    high = [0xFFFFFFFE, 1, 0xD2511F53 * 0xCD9E8D57 >> 32]
    np.testing.assert_array_equal(apply("mul.hi.u32 %d, %a, %b;", np.uint32, a, b), high)
    np.testing.assert_array_equal(apply("mul.hi.s32 %d, %a, %b;", np.int32, a, b)[:2], [0, -1])
    np.testing.assert_array_equal(apply("mul.lo.s32 %d, %a, %b;", np.uint32, a, b)[:2], [1, 0])
    np.testing.assert_array_equal(apply("mul.wide.s32 %d, %a, %b;", np.int64, a, b)[:2], [1, -(2**32)])
    np.testing.assert_array_equal(apply("mul.wide.u32 %d, %a, %b;", np.uint64, a, b)[:2], [(2**32 - 1) ** 2, 2**32])
    np.testing.assert_array_equal(apply("mad.lo.s32 %d, %a, %b, 7;", np.uint32, a, b)[:2], [8, 7])


def test_high_half_of_64_bits() -> None:
    numbers = [0xFFFFFFFFFFFFFFFF, 0x8000000000000000, 0x123456789ABCDEF0, 3]
    a = np.array([x for x in numbers for _ in numbers], np.uint64)
    b = np.array([y for _ in numbers for y in numbers], np.uint64)
    expected = [int(x) * int(y) >> 64 for x, y in zip(a, b, strict=True)]
    np.testing.assert_array_equal(apply("mul.hi.u64 %d, %a, %b;", np.uint64, a, b), expected)
    expected = [int(x) * int(y) >> 64 for x, y in zip(a.view(np.int64), b.view(np.int64), strict=True)]
    np.testing.assert_array_equal(apply("mul.hi.s64 %d, %a, %b;", np.int64, a, b), expected)


def test_division_truncates() -> None:
    a, b = u32(-7, 7, -7, 6), u32(2, -2, -2, 3)
    np.testing.assert_array_equal(apply("div.s32 %d, %a, %b;", np.int32, a, b), [-3, -3, 3, 2])
    np.testing.assert_array_equal(apply("rem.s32 %d, %a, %b;", np.int32, a, b), [-1, 1, -1, 0])


def test_shifts() -> None:
    a, amount = u32(0x80000001, 0x80000001, 0x80000001), u32(1, 32, 200)
    np.testing.assert_array_equal(apply("shl.b32 %d, %a, %b;", np.uint32, a, amount), [2, 0, 0])
    np.testing.assert_array_equal(apply("shr.u32 %d, %a, %b;", np.uint32, a, amount), [0x40000000, 0, 0])
    np.testing.assert_array_equal(apply("shr.s32 %d, %a, %b;", np.int32, a, amount), [-(2**30), -1, -1])
    low, high, by = u32(0x11111111, 1), u32(0x80000000, 0x80000000), u32(4, 36)
    np.testing.assert_array_equal(apply("shf.l.wrap.b32 %d, %a, %b, %c;", np.uint32, low, high, by), [1, 0])
    np.testing.assert_array_equal(apply("shf.r.wrap.b32 %d, %a, %b, %c;", np.uint32, low, high, by), [0x01111111, 0])
    np.testing.assert_array_equal(apply("shf.r.clamp.b32 %d, %a, %b, %c;", np.uint32, low, high, by), [0x01111111, 0x80000000])


def test_bit_fields() -> None:
    a = u32(0x0000F234)
    assert apply("bfe.u32 %d, %a, 8, 8;", np.uint32, a) == 0xF2
    assert apply("bfe.s32 %d, %a, 8, 8;", np.int32, a) == -14
    assert apply("bfe.s32 %d, %a, 40, 8;", np.int32, u32(-5)) == -1
    assert apply("bfi.b32 %d, %a, -1, 4, 8;", np.uint32, u32(0x5)) == 0xFFFFF05F
    assert apply("prmt.b32 %d, %a, %b, 0x7410;", np.uint32, u32(0x33221100), u32(0x77665544)) == 0x77441100
    assert apply("prmt.b32 %d, %a, %b, 0x0009;", np.uint32, u32(0x00008011), u32(0)) == 0x111111FF
    assert apply("lop3.b32 %d, %a, 0xF0F0, 0xCCCC, 0x96;", np.uint32, u32(0xAAAA)) == 0xAAAA ^ 0xF0F0 ^ 0xCCCC
    assert apply("lop3.b32 %d, %a, 0xF0F0, 0xCCCC, 0xEA;", np.uint32, u32(0xAAAA)) == 0xAAAA & 0xF0F0 | 0xCCCC
    assert apply("clz.b32 %d, %a;", np.uint32, u32(0x00010000)) == 15
    assert apply("popc.b32 %d, %a;", np.uint32, u32(0xF0F0)) == 8
    assert apply("brev.b32 %d, %a;", np.uint32, u32(1)) == 0x80000000


def test_packing_moves() -> None:
    a = u32(0x12345678)
    assert apply("mov.b32 {%s1, %s2}, %a;\nmov.b32 %d, {%s2, %s1};", np.uint32, a) == 0x56781234
    assert apply("mov.b64 %y5, {%a, 7};\nmov.b64 {_, %d}, %y5;", np.uint32, a) == 7


def test_a_half_that_nothing_sets_is_poison() -> None:
    """LLVM pairs floats for sm_100 with whatever is in a register that nothing sets, and drops that half again."""
    text = "mov.b64 %y5, {%a, %r9};\nadd.rn.f32x2 %y5, %y5, %y5;\nmov.b64 {%r1, %r2}, %y5;\nmov.b32 %d, "
    assert apply(text + "%r1;", np.float32, f32(1.5)) == 3
    assert np.isnan(apply(text + "%r2;", np.float32, f32(1.5)))
    with pytest.raises(ptx.Unwritten):
        apply("mov.b64 %y5, {%a, %r9};\nmov.b32 %r9, 1;\nmov.b64 {%d, %r2}, %y5;", np.float32, f32(1.5))


def test_scopes_have_their_own_registers() -> None:
    text = """
        mov.b32 %d, %a;
        { .reg .b32 u; mov.b32 u, 5; add.s32 %d, %d, u; }
        { .reg .b16 u; mov.b16 u, 3; cvt.u32.u16 %r1, u; }
        add.s32 %d, %d, %r1;"""
    assert apply(text, np.uint32, u32(100)) == 108


# -- lanes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "amount", "clamp", "source", "valid"),
    [
        ("bfly", 16, 31, THREAD ^ 16, THREAD >= 0),
        ("bfly", 1, 31, THREAD ^ 1, THREAD >= 0),
        ("idx", 5, 31, np.full(32, 5), THREAD >= 0),
        ("idx", 2, 0x181F, THREAD // 8 * 8 + 2, THREAD >= 0),
        ("up", 3, 0, np.where(THREAD >= 3, THREAD - 3, THREAD), THREAD >= 3),
        ("down", 4, 31, np.where(THREAD + 4 < 32, THREAD + 4, THREAD), THREAD + 4 < 32),
        ("down", 1, 0x1C03, np.where(THREAD % 4 < 3, THREAD + 1, THREAD), THREAD % 4 < 3),
    ],
)
def test_shuffle(form: str, amount: int, clamp: int, source: np.ndarray, valid: np.ndarray) -> None:
    a = u32(*(THREAD * 10))
    text = f"shfl.sync.{form}.b32 %d|%p1, %a, {amount}, {clamp}, -1;"
    np.testing.assert_array_equal(apply(text, np.uint32, a), source * 10)
    np.testing.assert_array_equal(apply(text + "\nselp.b32 %d, 1, 0, %p1;", np.uint32, a), valid)


def test_votes_and_reductions() -> None:
    a = u32(*THREAD)
    odd = "and.b32 %r1, %a, 1;\nsetp.ne.b32 %p1, %r1, 0;\n"
    np.testing.assert_array_equal(apply(odd + "vote.sync.ballot.b32 %d, %p1, -1;", np.uint32, a), np.full(32, 0xAAAAAAAA))
    np.testing.assert_array_equal(apply("redux.sync.add.s32 %d, %a, -1;", np.uint32, a), np.full(32, 496))
    np.testing.assert_array_equal(apply("redux.sync.min.s32 %d, %a, -1;", np.int32, u32(*(-THREAD))), np.full(32, -31))
    x = f32(*THREAD)
    x[3] = np.nan
    np.testing.assert_array_equal(apply("redux.sync.max.f32 %d, %a, -1;", np.float32, x), np.full(32, 31))
    np.testing.assert_array_equal(apply("redux.sync.max.NaN.f32 %d, %a, -1;", np.float32, x), np.full(32, np.nan))


@pytest.mark.parametrize("transposed", ["", ".trans"])
def test_matrices_in_shared_memory(transposed: str) -> None:
    """Lane l holds elements 2l and 2l + 1 of an 8x8 matrix; its row r is at the address of lane r."""
    elements = np.arange(64, dtype=np.uint16)
    text = """
        and.b32 %r1, %t, 7;
        shl.b32 %r1, %r1, 4;
        mov.b32 %r2, global_smem;
        add.s32 %r1, %r1, %r2;
        shl.b32 %r2, %t, 2;
        add.s32 %r2, %r2, global_smem;
        shl.b32 %r3, %t, 2;
        cvt.u64.u32 %y0, %r3;
        add.s64 %y1, %x0, %y0;
        add.s64 %y2, %x1, %y0;
        ld.global.b32 %r3, [%y1];
        """
    output = np.zeros(64, np.uint16)
    store = (
        f"stmatrix.sync.aligned.m8n8.x1{transposed}.shared.b16 [%r1], {{%r3}};\nbar.warp.sync -1;\nld.shared.b32 %r4, [%r2];\n"
    )
    load = f"st.shared.b32 [%r2], %r3;\nbar.warp.sync -1;\nldmatrix.sync.aligned.m8n8.x1{transposed}.shared.b16 {{%r4}}, [%r1];\n"
    expected = elements.reshape(8, 8).T.reshape(-1) if transposed else elements
    for body in (store, load):
        ptx.run(entry(2, text + body + "st.global.b32 [%y2], %r4;", shared=128), (1,), 32, [elements, output], 128)
        np.testing.assert_array_equal(output, expected)
        with pytest.raises(ptx.Race):
            unordered = body.replace("bar.warp.sync -1;", "")
            ptx.run(entry(2, text + unordered, shared=128), (1,), 32, [elements, output], 128)


# -- control -------------------------------------------------------------------------------------------------------------


def test_threads_part_and_meet_again() -> None:
    text = """
        mov.b32 %d, 0;
        setp.lt.u32 %p1, %t, 10;
        @%p1 bra THERE;
        mov.b32 %d, 5;
        bra.uni HERE;
    THERE: mov.b32 %d, 6;
    HERE:  shfl.sync.idx.b32 %r1, %d, 31, 31, -1;
        add.s32 %d, %d, %r1;"""
    np.testing.assert_array_equal(apply(text, np.uint32, u32(*THREAD)), np.where(THREAD < 10, 11, 10))


def test_loop_of_a_different_length_in_each_thread() -> None:
    text = """
        mov.b32 %d, 0;
        mov.b32 %r1, 0;
    AGAIN: add.s32 %d, %d, %r1;
        add.s32 %r1, %r1, 1;
        setp.le.u32 %p1, %r1, %a;
        @%p1 bra AGAIN;
        bar.sync 0;"""
    np.testing.assert_array_equal(apply(text, np.uint32, u32(*THREAD)), THREAD * (THREAD + 1) // 2)


def test_threads_that_returned_are_not_waited_for() -> None:
    output = np.zeros(32, np.uint32)
    body = "setp.gt.u32 %p1, %t, 7;\n@%p1 ret;\nbar.sync 0;\nmul.wide.u32 %y0, %t, 4;\nadd.s64 %y0, %x0, %y0;\n"
    machine = ptx.run(entry(1, body + "st.global.b32 [%y0], 1;"), (1,), 32, [output])
    np.testing.assert_array_equal(output, THREAD < 8)
    assert machine.issued["st.global.b32"] == 1
    assert machine.executed["st.global.b32"] == 8


def run_body(body: str, *args: object, parameters: int = 1, threads: int = 32, shared: int = 0, grid: int = 1) -> ptx.Machine:
    kernel = entry(parameters, body, shared)
    kernel.num_threads = threads
    return ptx.run(kernel, (grid,), threads, list(args), shared)


@pytest.mark.parametrize(
    "body",
    [
        "setp.lt.u32 %p1, %t, 9;\n@%p1 bra OVER;\nbar.sync 0;\nOVER: mov.b32 %r1, 0;",
        "setp.lt.u32 %p1, %t, 9;\n@%p1 bar.sync 0;",
        "setp.lt.u32 %p1, %t, 9;\n@%p1 shfl.sync.bfly.b32 %r1, %t, 1, 31, -1;",
        "setp.lt.u32 %p1, %t, 9;\n@%p1 bar.warp.sync -1;",
        "setp.lt.u32 %p1, %t, 9;\n@%p1 shfl.sync.idx.b32 %r1, %t, 20, 31, 0x1FF;",
    ],
)
def test_waiting_for_threads_that_are_elsewhere(body: str) -> None:
    with pytest.raises(ptx.Diverged):
        run_body(body, np.zeros(1, np.uint32))


def test_a_loop_without_end() -> None:
    with pytest.raises(ptx.PtxError, match="not returned"):
        ptx.run(entry(1, "ROUND: bra ROUND;"), (1,), 32, [None], limit=100)


@pytest.mark.parametrize(
    "text",
    [
        "frobnicate.b32 %r1, %t;",
        "add.wild.s32 %r1, %t, %t;",
        "ld.global.b32 %r1, [%unheard];",
        "ld.weird.b32 %r1, [%x0];",
        "cvt.rn.s32.f32 %r1, %r2;",
        "cvt.f16.f32 %s1, %r2;",
        "add.f64 %y1, %y1, %y1;",
        "mov.b32 %r1, %unheard;",
        "bar.sync 1;",
        "bar.sync 0, 64;",
        "bra NOWHERE;",
        ".local .align 4 .b8 depot[16];",
        "ld.global.v2.b32 %r1, [%x0];",
        "atom.global.add.u32 %r1, [%x0], 1;",
        "add.s32 %r1, %t;",
        "mov.b64 %y1, %r1;",
    ],
)
def test_what_is_not_known_is_an_error(text: str) -> None:
    with pytest.raises(ptx.UnknownInstruction, match=text.split()[0].replace(".", r"\.")):
        run_body(text, np.zeros(4, np.uint32))


# -- memory --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("ld.global.b32 %r1, [%x0+124];", None),
        ("ld.global.b32 %r1, [%x0+128];", ptx.OutOfBounds),
        ("ld.global.b32 %r1, [%x0+-4];", ptx.OutOfBounds),
        ("ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%x0+112];", None),
        ("ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%x0+120];", ptx.Misaligned),
        ("ld.global.b32 %r1, [%x0+2];", ptx.Misaligned),
        ("ld.global.b32 %r1, [%x1];", ptx.OutOfBounds),
        ("st.global.b64 [%x0+128], %x0;", ptx.OutOfBounds),
        ("cvt.u32.u64 %r1, %x0;\nadd.s32 %r1, %r1, 256;\ncvt.u64.u32 %y0, %r1;\nld.global.b32 %r1, [%y0];", ptx.OutOfBounds),
        ("ld.shared.b32 %r1, [global_smem+64];", ptx.OutOfBounds),
        ("st.shared.b32 [global_smem+62], %t;", ptx.Misaligned),
        ("ld.shared.b32 %r1, [global_smem];", ptx.Unwritten),
        ("add.s32 %r1, %r2, 1;", ptx.Unwritten),
        ("setp.lt.u32 %p1, %t, 5;\n@%p1 mov.b32 %r1, 0;\nadd.s32 %r2, %r1, 1;", ptx.Unwritten),
        ("setp.lt.u32 %p1, %t, 5;\n@%p1 mov.b32 %r1, 0;\n@%p1 add.s32 %r2, %r1, 1;", None),
    ],
)
def test_faults_of_memory(body: str, error: type[ptx.PtxError] | None) -> None:
    arguments = (np.zeros(32, np.uint32), None)
    if error is None:
        run_body(body, *arguments, parameters=2, shared=64)
        return
    with pytest.raises(error, match=r"k, line \d+, CTA \(0, 0, 0\)"):
        run_body(body, *arguments, parameters=2, shared=64)


def test_a_buffer_knows_what_was_written() -> None:
    output = ptx.Buffer(np.zeros(4, np.uint32), unwritten=True)
    machine = run_body("st.global.b32 [%x0+4], 1;", output)
    np.testing.assert_array_equal(machine.unwritten(0), np.repeat([True, False, True, True], 4))
    with pytest.raises(ptx.Unwritten):
        run_body("ld.global.b32 %r1, [%x0+4];", output)
    with pytest.raises(ptx.Misaligned):
        run_body("st.global.b32 [%x0], 1;", ptx.Buffer(np.zeros(4, np.uint32), misaligned_by=2))


OWN = "shl.b32 %r1, %t, 2;\nmov.b32 %r2, global_smem;\nadd.s32 %r3, %r2, %r1;\nxor.b32 %r4, %r1, {};\nadd.s32 %r4, %r2, %r4;\n"
WARPS, LANES = OWN.format(128), OWN.format(4)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (WARPS + "st.shared.b32 [%r3], %t;\n{}ld.shared.b32 %r5, [%r4];", True),
        (LANES + "st.shared.b32 [%r3], %t;\n{}ld.shared.b32 %r5, [%r4];", True),
        (LANES + "st.shared.b32 [%r3], %t;\n{}st.shared.b32 [%r4], %t;", True),
        (LANES + "st.shared.b32 [%r3], 7;\n{}st.shared.b32 [%r4], 7;", False),
        (LANES + "st.shared.b32 [%r3], %t;\nld.shared.b32 %r5, [%r3];\n{}st.shared.b32 [%r4], %t;", True),
        (WARPS + "st.shared.b32 [%r3], %t;\nld.shared.b32 %r5, [%r3];\n{}st.shared.b32 [%r4], %t;", True),
        (WARPS + "st.shared.b32 [%r3], %t;\nld.shared.b32 %r5, [%r3];\n{}st.shared.b32 [%r3], %t;", False),
    ],
)
def test_a_race_in_shared_memory(body: str, found: bool) -> None:
    def attempt(between: str) -> None:
        run_body(body.format(between), np.zeros(1, np.uint32), threads=64, shared=256)

    attempt("bar.sync 0;\n")
    if not found:
        attempt("")
        return
    with pytest.raises(ptx.Race):
        attempt("")
    if body.startswith(LANES):
        attempt("bar.warp.sync -1;\n")
        return
    with pytest.raises(ptx.Race):
        attempt("bar.warp.sync -1;\n")


def test_lanes_that_write_different_values_at_once() -> None:
    run_body("st.shared.b32 [global_smem], 3;", None, shared=16)
    with pytest.raises(ptx.Race, match="different values"):
        run_body("st.shared.b32 [global_smem], %t;", None, shared=16)


@pytest.mark.parametrize(
    ("body", "fails"),
    [
        ("mov.u32 %r1, %ctaid.x;\nst.global.b32 [%x0], %r1;", True),
        ("st.global.b32 [%x0], 5;", False),
        ("ld.global.b32 %r1, [%x0];", False),
        ("ld.global.b32 %r1, [%x0];\nbar.sync 0;\nst.global.b32 [%x0], 5;", True),
    ],
)
def test_nothing_orders_two_ctas(body: str, fails: bool) -> None:
    run_body(body, np.zeros(1, np.uint32), grid=1)
    if not fails:
        run_body(body, np.zeros(1, np.uint32), grid=2)
        return
    with pytest.raises(ptx.Race):
        run_body(body, np.zeros(1, np.uint32), grid=2)


def test_arguments_that_do_not_fit() -> None:
    kernel = entry(1, "mov.b32 %r1, 0;")
    with pytest.raises(ValueError, match="2 arguments for 1"):
        ptx.run(kernel, (1,), 32, [None, None])
    with pytest.raises(ValueError, match="threads"):
        ptx.run(kernel, (1,), 64, [None])
    with pytest.raises(ValueError, match="contiguous"):
        ptx.run(kernel, (1,), 32, [f32(1, 2, 3, 4)[::2]])
