"""tests/support/ptx runs what Triton compiles: results against PyTorch, traffic, and faults planted in the PTX text.

No GPU is needed: triton.compile has ptxas with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.support import ptx

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

CAPABILITIES = (80, 90, 100, 120)
ALIGNED = [["tt.divisibility", 16]]


@triton.jit
def scaled_sum(x_ptr, y_ptr, out_ptr, n, factor, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    x = tl.load(x_ptr + offsets, mask=mask)
    y = tl.load(y_ptr + offsets, mask=mask, other=0.0)
    tl.store(out_ptr + offsets, x * factor + y, mask=mask)


@triton.jit
def row_softmax(x_ptr, out_ptr, columns, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    start = tl.program_id(0).to(tl.int64) * columns
    x = tl.load(x_ptr + start + offsets, mask=offsets < columns, other=float("-inf"))
    e = tl.exp(x - tl.max(x, axis=0))
    tl.store(out_ptr + start + offsets, e / tl.sum(e, axis=0), mask=offsets < columns)


@triton.jit
def tile_norm(x_ptr, scale_ptr, out_ptr, mean_ptr, rows, columns, eps, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    r, c = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    mask = (r < rows) & (c < columns)
    start = tl.program_id(0) * rows * columns
    x = tl.load(x_ptr + start + r * columns + c, mask=mask, other=0.0).to(tl.float32)
    count = (rows * columns).to(tl.float32)
    mean = tl.sum(tl.sum(x, axis=1), axis=0) / count
    centred = tl.where(mask, x - mean, 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(tl.sum(centred * centred, axis=1), axis=0) / count + eps)
    scale = tl.load(scale_ptr + tl.arange(0, ROWS), mask=tl.arange(0, ROWS) < rows, other=0.0).to(tl.float32)
    u = centred * rstd * (1 + scale[:, None])
    tl.store(out_ptr + start + r * columns + c, (u * tl.sigmoid(u)).to(out_ptr.dtype.element_ty), mask=mask)
    tl.store(mean_ptr + tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.sum(u, axis=1))


@triton.jit
def transpose(x_ptr, out_ptr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    r, c = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    x = tl.load(x_ptr + r[:, None] * COLUMNS + c[None, :])
    tl.store(out_ptr + c[:, None] * ROWS + r[None, :], tl.trans(x))


@triton.jit
def philox_words(out_ptr, key_0, key_1, BLOCK: tl.constexpr):
    counter = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    c0, c1 = counter.to(tl.uint32), tl.zeros([BLOCK], tl.uint32)
    c2, c3 = c1 + 7, c1
    k0, k1 = key_0.to(tl.uint32), key_1.to(tl.uint32)
    for _ in tl.static_range(10):
        high_0, high_1 = tl.umulhi(c0, 0xD2511F53), tl.umulhi(c2, 0xCD9E8D57)
        low_0, low_1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = high_1 ^ c1 ^ k0, low_1, high_0 ^ c3 ^ k1, low_0
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    tl.store(out_ptr + counter, c0 ^ c1 ^ c2 ^ c3)


@triton.jit
def column_sums(x_ptr, out_ptr, rows, COLUMNS: tl.constexpr):
    c = tl.arange(0, COLUMNS)
    total = tl.zeros([COLUMNS], tl.float32)
    for row in tl.range(tl.program_id(0), rows, 2):
        x = tl.load(x_ptr + row * COLUMNS + c)
        total += tl.where(x > 0, tl.log(x + 1) * tl.rsqrt(x), tl.floor(x))
    if rows > 3:
        total += 1
    tl.store(out_ptr + tl.program_id(0) * COLUMNS + c, total)


@triton.jit
def integers(x_ptr, out_ptr, divisor, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets)
    y = (x // divisor) * 3 + x % divisor - (x >> 3) + tl.abs(x)
    y = tl.where((x & 7) == 3, y ^ -1, tl.minimum(y, 1000))
    tl.store(out_ptr + offsets, y + (x.to(tl.int8).to(tl.int32) | (x.to(tl.int64) * x >> 32).to(tl.int32)))


@triton.jit
def half_arithmetic(x_ptr, y_ptr, out_ptr, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    x, y = tl.load(x_ptr + offsets), tl.load(y_ptr + offsets)
    tl.store(out_ptr + offsets, tl.maximum(x * y + x, x - y))


@cache
def build(kernel, capability: int, signature: tuple[str, ...], num_warps: int = 4, fusion: bool = False, **constants: int):
    """Compile; `signature` names the types of the arguments that are no constants. Pointers are aligned to 16 bytes."""
    names = [name for name in kernel.arg_names if name not in constants]
    types = dict(zip(names, signature, strict=True)) | dict.fromkeys(constants, "constexpr")
    attrs = {(kernel.arg_names.index(name),): ALIGNED for name in names if types[name].startswith("*")}
    source = ASTSource(kernel, types, {(kernel.arg_names.index(name),): value for name, value in constants.items()}, attrs)
    # With fusion, sum(a * b) over lanes becomes fma(a_i, b_i, a_j * b_j) in lane i and fma(a_j, b_j, a_i * b_i) in lane j:
    # lanes that should hold the same sum differ in its last bit, and write it to the same place.
    options = {"num_warps": num_warps, "enable_fp_fusion": fusion}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# -- results -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(("n", "block"), [(1000, 256), (512, 512), (1, 128)])
def test_vector_sum(capability: int, n: int, block: int) -> None:
    compiled = build(scaled_sum, capability, ("*fp32", "*fp32", "*fp32", "i32", "fp32"), BLOCK=block)
    x, y, out = normal(n), normal(n, seed=1), torch.zeros(n)
    machine = ptx.launch(compiled, (-(-n // block),), x, y, ptx.Buffer(out.numpy(), unwritten=True), n, 0.5)
    torch.testing.assert_close(out, 0.5 * x + y, rtol=0, atol=0)
    assert not machine.unwritten(2).any()
    assert [machine.memory[parameter.name].bytes_read for parameter in machine.kernel.parameters[:2]] == [4 * n, 4 * n]


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(("columns", "num_warps"), [(1000, 4), (77, 1), (2048, 8)])
def test_row_softmax(capability: int, columns: int, num_warps: int) -> None:
    compiled = build(row_softmax, capability, ("*fp32", "*fp32", "i32"), num_warps, BLOCK=triton.next_power_of_2(columns))
    x = 3 * normal(3, columns)
    out = torch.zeros_like(x)
    ptx.launch(compiled, (3,), x, ptx.Buffer(out.numpy(), unwritten=True), columns)
    torch.testing.assert_close(out.double(), torch.softmax(x.double(), dim=1), rtol=2e-6, atol=1e-9)


NORM = (None, "*fp32", None, "*fp32", "i32", "i32", "fp32")  # the types of its arguments, x's where None


def tile_norm_case(capability: int, dtype: str, rows: int, columns: int, num_warps: int) -> tuple:
    compiled = build(
        tile_norm,
        capability,
        tuple(kind or f"*{dtype}" for kind in NORM),
        num_warps,
        ROWS=triton.next_power_of_2(rows),
        COLUMNS=triton.next_power_of_2(columns),
    )
    torch_dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]
    x, scale = (normal(2, rows, columns) + 0.5).to(torch_dtype), normal(rows, seed=1)
    out, sums = torch.zeros_like(x), torch.zeros(2, triton.next_power_of_2(rows))
    outputs = [ptx.Buffer(ptx.memory_of(tensor), unwritten=True) for tensor in (out, sums)]
    return compiled, (2,), (x, scale, *outputs, rows, columns, 1e-5), (x, scale, out, sums)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(("rows", "columns", "num_warps"), [(8, 64, 4), (3, 49, 4), (32, 16, 8), (1, 1, 1)])
def test_tile_norm(capability: int, dtype: str, rows: int, columns: int, num_warps: int) -> None:
    compiled, grid, arguments, (x, scale, out, sums) = tile_norm_case(capability, dtype, rows, columns, num_warps)
    machine = ptx.launch(compiled, grid, *arguments)
    wide = x.double()
    mean, var = wide.mean(dim=(1, 2), keepdim=True), wide.var(dim=(1, 2), keepdim=True, unbiased=False)
    u = (wide - mean) / (var + 1e-5).sqrt() * (1 + scale.double()[:, None])
    torch.testing.assert_close(out, (u * u.sigmoid()).to(x.dtype), rtol=2**-7 if dtype == "bf16" else 1e-3, atol=1e-5)
    torch.testing.assert_close(sums[:, :rows].double(), u.sum(dim=2), rtol=1e-5, atol=1e-4)
    assert not machine.unwritten(2).any()
    assert not machine.unwritten(3).any()


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_transpose_goes_through_shared_memory(capability: int, dtype: str) -> None:
    compiled = build(transpose, capability, (f"*{dtype}", f"*{dtype}"), ROWS=32, COLUMNS=64)
    x = normal(32, 64).to(torch.bfloat16 if dtype == "bf16" else torch.float32)
    out = torch.zeros(64, 32, dtype=x.dtype)
    ptx.launch(compiled, (1,), x, ptx.Buffer(ptx.memory_of(out), unwritten=True))
    assert torch.equal(out, x.T)


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """c0 ^ c1 ^ c2 ^ c3 after ten rounds of Philox4x32 on (counter, 0, 7, 0), in 64-bit integers."""
    c0, c1, c2, c3 = counter.astype(np.uint64), 0, np.uint64(7), 0
    k0, k1 = key
    for _ in range(10):
        first, second = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = second >> 32 ^ c1 ^ k0, second & 0xFFFFFFFF, first >> 32 ^ c3 ^ k1, first & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0 ^ c1 ^ c2 ^ c3


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_philox_rounds(capability: int) -> None:
    compiled = build(philox_words, capability, ("*i32", "i32", "i32"), BLOCK=256)
    out = np.zeros(512, np.uint32)
    ptx.launch(compiled, (2,), ptx.Buffer(out, unwritten=True), 0x12345678, -5)
    np.testing.assert_array_equal(out, philox(np.arange(512), (0x12345678, 2**32 - 5)))


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_loop_and_functions(capability: int, rows: int) -> None:
    compiled = build(column_sums, capability, ("*fp32", "*fp32", "i32"), COLUMNS=128)
    x, out = 2 * normal(rows, 128), torch.zeros(2, 128)
    ptx.launch(compiled, (2,), x, out, rows)
    wide = x.double()
    values = torch.where(x > 0, (wide + 1).log() / wide.abs().sqrt(), wide.floor())
    expected = torch.stack([values[start::2].sum(dim=0) for start in range(2)]) + (rows > 3)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("divisor", [7, -5])
def test_integers(capability: int, divisor: int) -> None:
    compiled = build(integers, capability, ("*i32", "*i32", "i32"), BLOCK=256)
    x = torch.randint(-(2**31), 2**31, (256,), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    out = torch.zeros_like(x)
    ptx.launch(compiled, (1,), x, out, divisor)
    quotient, remainder = torch.div(x, divisor, rounding_mode="trunc"), torch.fmod(x, divisor)
    y = quotient * 3 + remainder - (x >> 3) + x.abs()
    y = torch.where((x & 7) == 3, ~y, y.clamp(max=1000))
    assert torch.equal(out, y + (x.to(torch.int8).to(torch.int32) | (x.long() * x >> 32).to(torch.int32)))


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_arithmetic_in_16_bits(capability: int, dtype: str) -> None:
    compiled = build(half_arithmetic, capability, (f"*{dtype}", f"*{dtype}", f"*{dtype}"), BLOCK=256)
    x, y = (normal(256, seed=seed).to(torch.bfloat16 if dtype == "bf16" else torch.float16) for seed in range(2))
    out = torch.zeros_like(x)
    ptx.launch(compiled, (1,), x, y, out)
    # The product may be kept unrounded (fma) or not.
    expected = torch.maximum(x.double() * y.double() + x.double(), x.double() - y.double())
    tolerance = 2**-7 if dtype == "bf16" else 2**-10
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)


# -- traffic -------------------------------------------------------------------------------------------------------------


def test_traffic_is_counted() -> None:
    compiled = build(transpose, 90, ("*fp32", "*fp32"), ROWS=32, COLUMNS=64)
    machine = ptx.launch(compiled, (1,), torch.zeros(32, 64), torch.zeros(64, 32))
    # 2048 floats, 128 threads, 4 floats an access.
    assert machine.issued["ld.global.v4.b32"] == machine.issued["st.global.v4.b32"] == 4
    assert machine.executed["ld.global.v4.b32"] == 512
    assert [memory.bytes_read for memory in machine.memory.values()] == [8192, 0]
    assert [memory.bytes_written for memory in machine.memory.values()] == [0, 8192]


# -- planted faults ------------------------------------------------------------------------------------------------------


def without(pattern: str, index: int) -> Callable[[str], str]:
    """Takes one of the matches of `pattern` out of a text."""

    def edit(text: str) -> str:
        match = list(re.finditer(pattern, text))[index]
        return text[: match.start()] + text[match.end() :]

    return edit


def replace(old: str, new: str) -> Callable[[str], str]:
    def edit(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    return edit


FAULTY = {
    "softmax": lambda capability: (
        build(row_softmax, capability, ("*fp32", "*fp32", "i32"), 4, BLOCK=512),
        (1,),
        (normal(1, 512), torch.zeros(1, 512), 512),
    ),
    "norm": lambda capability: tile_norm_case(capability, "bf16", 8, 64, 4)[:3],
    "transpose": lambda capability: (
        build(transpose, capability, ("*fp32", "*fp32"), ROWS=32, COLUMNS=64),
        (1,),
        (normal(32, 64), torch.zeros(64, 32)),
    ),
}


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", FAULTY)
def test_every_missing_barrier_is_found(name: str, capability: int) -> None:
    compiled, grid, arguments = FAULTY[name](capability)
    text = compiled.asm["ptx"]
    barriers = len(re.findall(r"bar\.sync\s+0;", text))
    assert barriers
    ptx.launch(compiled, grid, *arguments)
    for index in range(barriers):
        with pytest.raises(ptx.Race):
            ptx.launch(compiled, grid, *arguments, edit=without(r"bar\.sync\s+0;", index))


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_planted_faults_of_addresses(capability: int) -> None:
    compiled, grid, arguments = FAULTY["transpose"](capability)
    text = compiled.asm["ptx"]
    for access in re.findall(r"(?:ld|st)\.global\.v4\.b32 [^;]*;", text):
        for offset, error in ((8192, ptx.OutOfBounds), (-8192, ptx.OutOfBounds), (4, ptx.Misaligned)):
            moved = replace(access, access.replace("+ 0 ]", f"+ {offset} ]"))
            with pytest.raises(error, match=r"global\.v4\.b32"):
                ptx.launch(compiled, grid, *arguments, edit=moved)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_dropped_store_is_found(capability: int) -> None:
    compiled, grid, arguments = FAULTY["norm"](capability)
    stores = r"@?%?\w* ?st\.global[^;]*;"
    for index in range(len(re.findall(stores, compiled.asm["ptx"]))):
        machine = ptx.launch(compiled, grid, *arguments, edit=without(stores, index))
        assert machine.unwritten(2).any() or machine.unwritten(3).any()


@pytest.mark.parametrize("capability", (80, 90))  # later ones multiply and add two floats at once, which is not fused here
def test_lanes_that_disagree_are_found(capability: int) -> None:
    compiled = build(tile_norm, capability, tuple(kind or "*bf16" for kind in NORM), fusion=True, ROWS=8, COLUMNS=64)
    _, grid, arguments = FAULTY["norm"](capability)
    with pytest.raises(ptx.Race, match="different values"):
        ptx.launch(compiled, grid, *arguments)


def test_an_unknown_opcode_is_found() -> None:
    compiled, grid, arguments = FAULTY["softmax"](80)
    for edit in (replace("ex2.approx", "ex3.approx"), replace("bfly.b32", "fly.b32")):
        with pytest.raises(ptx.UnknownInstruction):
            ptx.launch(compiled, grid, *arguments, edit=edit)


def test_clusters_are_refused() -> None:
    compiled, _, arguments = FAULTY["softmax"](90)
    cluster = SimpleNamespace(asm=compiled.asm, src=compiled.src, metadata=compiled.metadata._replace(num_ctas=2))
    with pytest.raises(ValueError, match="2 CTAs a cluster"):
        ptx.launch(cluster, (1,), *arguments)
