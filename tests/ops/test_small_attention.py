"""small_attention: the parity rule over ragged shapes, bits that depend on nothing but the image, refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcond.ops.norm_conv import ChannelNorm
from fastcond.ops.small_attention import pack_attention_weights, small_attention
from fastcond.ops.small_attention.op import small_attention_forward
from tests.support.kernels import kernel  # noqa: F401  (each test with the native library and without)
from tests.support.small_attention import Case, check_parity

CASES = [
    Case((2, 128, 8, 8), 16),
    Case((3, 64, 4, 4), 4),
    Case((1, 128, 16, 16), 4, residual=False),
    Case((2, 96, 8, 8), 1),
    # No multiple of the 16 lanes, of the 32 features of a block; heads across blocks.
    Case((3, 20, 5, 7), 4),
    Case((2, 36, 3, 3), 2, biased=False),
    Case((1, 7, 1, 1), 7),
    Case((2, 80, 9, 5), 2, normed=False),
    Case((1, 17, 6, 6), 1, packed=False),
    Case((2, 24, 6, 6), 3, channels_last=False),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case: Case) -> None:
    check_parity(case)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    dimension=st.integers(1, 20),
    heads=st.integers(1, 5),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    biased=st.booleans(),
)
def test_parity_at_random(batch: int, dimension: int, heads: int, height: int, width: int, biased: bool) -> None:
    check_parity(Case((batch, dimension * heads, height, width), heads, biased=biased))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_run_the_reference(dtype: torch.dtype) -> None:
    check_parity(Case((2, 12, 6, 5), 3, dtype=dtype))


def test_large_scores() -> None:
    """Scores of some hundred: without their largest taken off, e^score would be infinite."""
    check_parity(Case((2, 32, 4, 4), 2, sharpness=8.0))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_stays_so(bad: float) -> None:
    """One such input reaches every token, as every query sees its key."""
    operands = Case((2, 16, 4, 4), 2).operands()
    operands["x"][1, 3, 2, 2] = bad
    y = small_attention(**operands)
    assert y[0].isfinite().all() and not y[1].isfinite().any()


def test_layouts() -> None:
    x = torch.randn(2, 8, 6, 6)
    weights = torch.randn(24, 8), torch.randn(8, 8)
    last = small_attention(x.to(memory_format=torch.channels_last), *weights, 2)
    assert last.is_contiguous(memory_format=torch.channels_last)
    contiguous = small_attention(x, *weights, 2)
    assert contiguous.is_contiguous()
    torch.testing.assert_close(contiguous, last)
    assert small_attention(x[:0], *weights, 2).shape == (0, 8, 6, 6)


@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck(channels_last: bool) -> None:
    operands = Case((2, 6, 3, 5), 2, channels_last=channels_last).operands()
    names = ("qkv_weight", "qkv_bias", "out_weight", "out_bias", "packed", "residual", "heads")
    torch.library.opcheck(small_attention_forward, (operands["x"], *operands["norm"], *(operands[name] for name in names)))


def test_there_is_no_gradient() -> None:
    x = torch.randn(1, 4, 2, 2, requires_grad=True)
    with pytest.raises(NotImplementedError, match="inference"):
        small_attention(x, torch.randn(12, 4), torch.randn(4, 4), 2).sum().backward()


def refusals() -> dict[str, tuple[Callable[[], Any], str]]:
    x, qkv, out, row = torch.randn(2, 6, 4, 4), torch.randn(18, 6), torch.randn(6, 6), torch.randn(2, 6)
    short = ChannelNorm(row, row[:1], row)
    return {
        "integers": (lambda: small_attention(x.long(), qkv, out, 2), r"x is torch.int64 \[2, 6, 4, 4\]"),
        "heads": (lambda: small_attention(x, qkv, out, 4), r"x is \[2, 6, 4, 4\] for 4 heads"),
        "no heads": (lambda: small_attention(x, qkv, out, 0), "for 0 heads"),
        "qkv": (lambda: small_attention(x, out, out, 2), r"qkv_weight is \[6, 6\]; \[18, 6\]"),
        "out": (lambda: small_attention(x, qkv, qkv, 2), r"out_weight is \[18, 6\]; \[6, 6\]"),
        "qkv bias": (lambda: small_attention(x, qkv, out, 2, qkv_bias=torch.ones(6)), r"qkv_bias is \[6\]; \[18\]"),
        "out bias": (lambda: small_attention(x, qkv, out, 2, out_bias=torch.ones(5)), r"out_bias is \[5\]; \[6\]"),
        "residual": (lambda: small_attention(x, qkv, out, 2, residual=x[:1]), r"residual is \[1, 6, 4, 4\]"),
        "norm": (lambda: small_attention(x, qkv, out, 2, norm=short), r"\[\[2, 6\], \[1, 6\], \[2, 6\]\]; none or all \[2, 6\]"),
        "packed": (lambda: small_attention(x, qkv, out, 2, packed=torch.ones(3)), r"packed is torch.float32 \[3\]"),
        "pack": (lambda: pack_attention_weights(qkv[0], out), r"weights are \[6\], \[6, 6\]"),
    }


@pytest.mark.parametrize("case", refusals())
def test_refuses_in_one_line(case: str) -> None:
    call, message = refusals()[case]
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
