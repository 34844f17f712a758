"""norm_conv: the parity rule over ragged shapes, bits that depend on nothing but the image, refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcond.ops.norm_conv import ChannelNorm, norm_conv, norm_conv_with_statistics, pack_conv_weight, reference
from fastcond.ops.norm_conv.op import norm_conv_forward, pack_conv_weight_op
from tests.support.kernels import kernel  # noqa: F401  (each test with the native library and without)
from tests.support.norm_conv import Case, check_parity
from tests.tolerances import assert_within_floor

CASES = [
    Case((2, 32, 16, 16), 32),
    Case((3, 16, 8, 8), 48),
    Case((1, 64, 4, 4), 64, bias="image"),
    Case((9, 96, 4, 4), 32, residual=False),
    Case((2, 128, 16, 16), 128, silu=False),
    Case((1, 3, 16, 16), 64, normed=False, silu=False),
    Case((2, 64, 16, 16), 3, bias="image"),
    # No multiple of the tile's 4, of the 16 channels of a register, of the panel's 32 features.
    Case((2, 20, 5, 7), 40),
    Case((3, 17, 13, 3), 33, bias="none"),
    Case((1, 1, 1, 1), 1, residual=False),
    Case((2, 7, 1, 9), 5, packed=False),
    Case((1, 100, 10, 6), 68, normed=False),
    # More tiles than a block: of rows of tiles, of parts of a row.
    Case((1, 128, 33, 30), 32, bias="image"),
    Case((1, 272, 9, 70), 16),
    # Both layouts are taken.
    Case((2, 24, 6, 6), 24, channels_last=False),
]
SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 18), st.integers(1, 18))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case: Case) -> None:
    check_parity(case)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(shape=SHAPES, features=st.integers(1, 70), normed=st.booleans(), silu=st.booleans())
def test_parity_at_random(shape: tuple[int, int, int, int], features: int, normed: bool, silu: bool) -> None:
    check_parity(Case(shape, features, normed=normed, silu=silu, bias="image"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_run_the_reference(dtype: torch.dtype) -> None:
    check_parity(Case((2, 12, 6, 5), 20, dtype=dtype))


def test_the_mean_is_not_folded_into_the_offset() -> None:
    """x = 4096 + noise, normalised: folded, the offset would be 4096 rstd, and a rounding of it 5e-4."""
    check_parity(Case((2, 32, 8, 8), 32, offset=4096.0))


def test_statistics_are_centred() -> None:
    """A result of 1000 +- 1e-2: E[y^2] - E[y]^2 would have no digit left."""
    case = Case((2, 16, 12, 12), 16, residual=False)
    operands = case.operands()
    operands["bias"], operands["weight"], operands["packed"] = torch.full((16,), 1000.0), operands["weight"] / 100, None
    y, statistics = norm_conv_with_statistics(**operands)
    truth = y.double()
    assert_within_floor("mean", statistics.mean, truth.mean(dim=(2, 3)))
    m2 = (truth - truth.mean(dim=(2, 3), keepdim=True)).square().sum(dim=(2, 3))
    assert float(((statistics.m2.double() - m2) / m2).abs().max()) < 0.01


def test_zeros_around_the_map_are_those_of_the_activated_map() -> None:
    """An offset that the norm adds does not reach the padding."""
    x, ones = torch.zeros(1, 1, 4, 4), torch.ones(1, 1)
    y = norm_conv(x, torch.ones(1, 1, 3, 3), norm=ChannelNorm(0 * ones, ones, ones))
    torch.testing.assert_close(y, F.conv2d(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3), padding=1))


def test_infinities_and_nan_are_not_lost() -> None:
    """They reach at least what they reach by the definition; a whole tile shares its inputs."""
    case = Case((1, 16, 8, 8), 16)
    operands = case.operands()
    operands["x"][0, 3, 2, 2] = float("nan")
    operands["x"][0, 4, 6, 6] = float("inf")
    lost = ~case.composed(operands).isfinite() & norm_conv(**operands).isfinite()
    assert not lost.any()


@pytest.mark.parametrize("features", [1, 16, 17, 32, 40, 48, 64])
def test_packed_weight(features: int) -> None:
    """The layout, and G g G^T, by the reference; native packing may round the last bit otherwise."""
    weight = torch.randn(features, 5, 3, 3)
    packed = pack_conv_weight(weight)
    expected = reference.pack(weight)
    assert packed.shape == (reference.packed_size(features, 5),)
    torch.testing.assert_close(packed, expected, atol=0.0, rtol=2e-7)


def test_packing_is_the_same_without_gaps_or_with() -> None:
    weight = torch.randn(20, 6, 3, 3)
    assert torch.equal(pack_conv_weight(weight.to(memory_format=torch.channels_last)), pack_conv_weight(weight))


def test_layouts() -> None:
    """channels_last stays, contiguous stays, and what is neither becomes channels_last."""
    x, weight = torch.randn(2, 8, 6, 6), torch.randn(8, 8, 3, 3)
    last = norm_conv(x.to(memory_format=torch.channels_last), weight)
    assert last.is_contiguous(memory_format=torch.channels_last)
    contiguous = norm_conv(x, weight)
    assert contiguous.is_contiguous()
    strided = norm_conv(torch.cat((x, x), dim=3)[:, :, :, :6], weight)
    assert strided.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(contiguous, last)
    torch.testing.assert_close(strided, last)


def test_empty() -> None:
    weight = torch.randn(8, 4, 3, 3)
    assert norm_conv(torch.empty(0, 4, 6, 6), weight).shape == (0, 8, 6, 6)


@pytest.mark.parametrize("statistics", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck(channels_last: bool, statistics: bool) -> None:
    operands = Case((2, 5, 6, 7), 9, channels_last=channels_last).operands()
    mean, gain, offset = operands["norm"]
    arguments = [operands["x"], mean, gain, offset, *(operands[name] for name in ("weight", "packed", "bias", "residual"))]
    torch.library.opcheck(norm_conv_forward, (*arguments, True, statistics))
    bare = (operands["x"], None, None, None, operands["weight"], None, None, None, False, statistics)
    torch.library.opcheck(norm_conv_forward, bare)
    torch.library.opcheck(pack_conv_weight_op, (operands["weight"],))


def test_there_is_no_gradient() -> None:
    x = torch.randn(1, 4, 4, 4, requires_grad=True)
    with pytest.raises(NotImplementedError, match="inference"):
        norm_conv(x, torch.randn(4, 4, 3, 3)).sum().backward()


def refusals() -> dict[str, tuple[Callable[[], Any], str]]:
    x, weight, row = torch.randn(2, 6, 4, 4), torch.randn(8, 6, 3, 3), torch.randn(2, 6)
    norm = ChannelNorm(row, row, row)
    return {
        "integers": (lambda: norm_conv(x.long(), weight), r"x is torch.int64 \[2, 6, 4, 4\]"),
        "dimensions": (lambda: norm_conv(x[0], weight), r"x is torch.float32 \[6, 4, 4\]"),
        "weight": (lambda: norm_conv(x, weight[:, :5]), r"weight has shape \[8, 5, 3, 3\]; \[K, 6, 3, 3\]"),
        "activation": (lambda: norm_conv(x, weight, activation="relu"), "activation is 'relu'"),
        "bias": (lambda: norm_conv(x, weight, torch.randn(6)), r"bias has shape \[6\]; \[8\] or \[2, 8\]"),
        "residual": (lambda: norm_conv(x, weight, None, x), r"residual has shape \[2, 6, 4, 4\]; \[2, 8, 4, 4\]"),
        "norm": (lambda: norm_conv(x, weight, norm=norm._replace(gain=row[:1])), r"norm.gain has shape \[1, 6\]; \[2, 6\]"),
        "packed": (lambda: norm_conv(x, weight, packed=torch.randn(7)), r"packed is torch.float32 \[7\]"),
        "pack": (lambda: pack_conv_weight(torch.randn(8, 6, 1, 1)), r"weight is torch.float32 \[8, 6, 1, 1\]"),
        "the op's norm": (
            lambda: norm_conv_forward(x, row, None, None, weight, None, None, None, False, False),
            r"mean, gain, offset are \[\[2, 6\]\]; none or all",
        ),
        "the op's bias": (
            lambda: norm_conv_forward(x, None, None, None, weight, None, torch.randn(3), None, False, False),
            r"bias is \[3\]",
        ),
        "the op's residual": (
            lambda: norm_conv_forward(x, None, None, None, weight, None, None, x, False, False),
            r"residual is \[2, 6, 4, 4\]",
        ),
        "the op's weight": (
            lambda: norm_conv_forward(x, None, None, None, weight[0], None, None, None, False, False),
            r"weight \[6, 3, 3\]",
        ),
    }


@pytest.mark.parametrize("case", refusals())
def test_refuses_in_one_line(case: str) -> None:
    call, message = refusals()[case]
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
