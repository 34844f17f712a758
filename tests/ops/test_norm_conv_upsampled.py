"""norm_conv's upsampled form against the convolution of the doubled map, statistics too."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastcond.ops import native
from fastcond.ops.norm_conv.upsampled import pack_upsampled_conv_weight
from tests.support.kernels import instruction_set, needs_native  # noqa: F401  (a fixture)

pytestmark = needs_native


def upsampled_conv(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, threads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(y [B, 2H, 2W, K], its mean and m2 [B, K]) of x [B, H, W, C]."""
    assert native.native is not None
    batch, height, width, channels = x.shape
    features = len(weight)
    y = torch.full((batch, 2 * height, 2 * width, features), float("nan"))
    mean, m2 = torch.full((batch, features), float("nan")), torch.full((batch, features), float("nan"))
    packed, nothing, slots = pack_upsampled_conv_weight(weight), torch.zeros(1), torch.zeros(batch, dtype=torch.int64)
    operands = [x, None, None, None, None, packed, bias, residual, y, mean, m2]
    addresses = [0 if value is None else value.data_ptr() for value in operands]
    network = native.native.Network()
    network.add_norm_conv(addresses, [0, 2 * height, 2 * width, channels, channels, features, 0, 1], 1.0)
    network.end_segment()
    network.run([nothing.data_ptr(), nothing.data_ptr(), nothing.data_ptr(), slots.data_ptr()], [1, batch, 1, threads])
    return y, mean, m2


def check(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, threads: int = 1) -> None:
    y, mean, m2 = upsampled_conv(x, weight, bias, residual, threads)
    doubled = F.interpolate(x.double().permute(0, 3, 1, 2), scale_factor=2.0, mode="nearest")
    truth = F.conv2d(doubled, weight.double(), bias.double(), padding=1).permute(0, 2, 3, 1)
    if residual is not None:
        truth = truth + residual
    size = truth.abs().max()
    # Winograd's F(4x4, 3x3) amplifies a rounding of the terms, whose sizes these are, about tenfold.
    terms = F.conv2d(doubled.abs(), weight.double().abs(), padding=1).max() + size
    assert (y - truth).abs().max() <= 16 * 2**-24 * terms
    of_image = truth.flatten(1, 2)
    assert (mean - of_image.mean(1)).abs().max() <= 16 * 2**-24 * terms
    distances = (of_image - of_image.mean(1, keepdim=True)).square().sum(1)
    assert (m2 - distances).abs().max() <= 1e-5 * distances.max() + 1e-9 * terms**2 * of_image.shape[1]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 11),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 70),
    st.booleans(),
    st.integers(1, 3),
)
def test_it_is_the_convolution_of_the_doubled_map(
    batch: int, height: int, width: int, channels: int, features: int, residual: bool, threads: int
) -> None:
    torch.manual_seed(height * width)
    x, weight = torch.randn(batch, height, width, channels), torch.randn(features, channels, 3, 3)
    added = torch.randn(batch, 2 * height, 2 * width, features) if residual else None
    check(x, weight, torch.randn(features), added, threads)


def test_on_every_instruction_set(instruction_set: str) -> None:  # noqa: F811
    torch.manual_seed(1)
    check(torch.randn(3, 5, 6, 33), torch.randn(40, 33, 3, 3), torch.randn(40), None)


@pytest.mark.parametrize("threads", [2, 3])
def test_its_bits_depend_on_neither_batch_nor_threads(threads: int) -> None:
    torch.manual_seed(2)
    operands = torch.randn(5, 8, 8, 64), torch.randn(64, 64, 3, 3), torch.randn(64), None
    alone = [upsampled_conv(operands[0][i : i + 1], *operands[1:], threads=1) for i in range(5)]
    for found, expected in zip(upsampled_conv(*operands, threads=threads), zip(*alone, strict=True), strict=True):
        assert torch.equal(found, torch.cat(expected))
