"""norm_conv of a doubled map, as the native network calls it: both forms against PyTorch's composition, statistics too."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastcond.ops import native
from fastcond.ops.norm_conv import ChannelStatistics, pack_conv_weight
from fastcond.ops.norm_conv.upsampled import is_worth_phases, pack_upsampled_conv_weight
from tests.support.kernels import instruction_set, needs_native  # noqa: F401  (a fixture)
from tests.support.norm_conv import Case, check_statistics
from tests.tolerances import WINOGRAD_AMPLIFICATION, WINOGRAD_RELATIVE, assert_parity, largest_error

FORMS = {"doubled": 1, "phased": 2}


@dataclass(frozen=True)
class Upsampled:
    """case: of x before it is doubled. first: channels in the first of its two parts, 0 for one part. scale: of the result."""

    case: Case
    form: str
    first: int = 0
    scale: float = 1.0

    def operands(self) -> dict[str, Tensor | None]:
        given = self.case.operands()
        batch, _, height, width = self.case.shape
        norm, residual = given.pop("norm"), None
        if self.case.residual:
            residual = torch.randn(batch, self.case.features, 2 * height, 2 * width, generator=torch.Generator().manual_seed(3))
        affine = dict(zip(("mean", "gain", "offset"), norm or (None, None, None), strict=True))
        return {**{name: given[name] for name in ("x", "weight", "bias")}, **affine, "residual": residual}

    def ours(self, o: dict[str, Tensor | None], threads: int) -> tuple[Tensor, Tensor, Tensor]:
        assert native.native is not None
        x, weight = o["x"], o["weight"]
        assert x is not None and weight is not None
        batch, channels, height, width = x.shape
        features, rows = len(weight), x.permute(0, 2, 3, 1)
        parts = [part.contiguous() for part in (rows.split([self.first, channels - self.first], 3) if self.first else (rows,))]
        packed = (pack_upsampled_conv_weight if self.form == "phased" else pack_conv_weight)(weight)
        residual = None if o["residual"] is None else o["residual"].permute(0, 2, 3, 1).contiguous()
        y = torch.full((batch, 2 * height, 2 * width, features), float("nan"))
        mean, m2 = torch.full((batch, features), float("nan")), torch.full((batch, features), float("nan"))
        second = parts[1] if self.first else None
        operands = [parts[0], second, o["mean"], o["gain"], o["offset"], packed, o["bias"], residual, y, mean, m2]
        addresses = [0 if value is None else value.data_ptr() for value in operands]
        stride = features if self.case.bias == "image" else 0
        nothing, slots, network = torch.zeros(1), torch.zeros(batch, dtype=torch.int64), native.native.Network()
        sizes = [stride, 2 * height, 2 * width, self.first or channels, channels, features, int(self.case.silu), FORMS[self.form]]
        network.add_norm_conv(addresses, sizes, self.scale)
        network.end_segment()
        network.run([nothing.data_ptr(), nothing.data_ptr(), nothing.data_ptr(), slots.data_ptr()], [1, batch, 1, threads])
        return y.permute(0, 3, 1, 2), mean, m2

    def composed(self, o: dict[str, Tensor | None], dtype: torch.dtype) -> Tensor:
        wide = {name: None if value is None else value.to(dtype) for name, value in o.items()}
        h, weight, mean, gain, offset, bias = (wide[name] for name in ("x", "weight", "mean", "gain", "offset", "bias"))
        assert h is not None and weight is not None
        if mean is not None and gain is not None and offset is not None:
            h = (h - mean[:, :, None, None]) * gain[:, :, None, None] + offset[:, :, None, None]
        h = F.interpolate(F.silu(h) if self.case.silu else h, scale_factor=2.0, mode="nearest")
        y = F.conv2d(h, weight, padding=1)
        if bias is not None:
            y = y + (bias if bias.dim() == 2 else bias[None])[:, :, None, None]
        residual = wide["residual"]
        return (y if residual is None else y + residual) * self.scale

    def check(self, threads: int = 1) -> None:
        operands = self.operands()
        y, mean, m2 = self.ours(operands, threads)
        expected, pytorch = self.composed(operands, torch.float64), self.composed(operands, torch.float32)
        largest = float(expected.abs().max())
        assert_parity(str(self), y, pytorch, expected, magnitude=WINOGRAD_AMPLIFICATION * largest)
        assert largest_error(y, expected) <= WINOGRAD_RELATIVE * largest
        check_statistics(self.case, y, ChannelStatistics(mean, m2))


@needs_native
@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=80, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 9), st.integers(1, 11)),
    features=st.integers(1, 70),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()),
    bias=st.sampled_from(["none", "channel", "image"]),
    scale=st.sampled_from([1.0, 0.7071]),
    threads=st.integers(1, 3),
)
def test_it_is_the_convolution_of_the_doubled_map(
    form: str,
    shape: tuple[int, int, int, int],
    features: int,
    flags: tuple[bool, bool, bool, bool],
    bias: str,
    scale: float,
    threads: int,
) -> None:
    normed, silu, residual, in_parts = flags
    case = Case(shape, features, normed, silu, bias, residual, packed=False)
    Upsampled(case, form, first=shape[1] // 3 if in_parts else 0, scale=scale).check(threads)


@needs_native
@pytest.mark.parametrize("shape", [(2, 256, 24, 28), (1, 256, 3, 150), (2, 300, 37, 5)])
def test_a_map_of_several_blocks(shape: tuple[int, int, int, int]) -> None:
    """Whose statistics are put together of parts and phases."""
    for form in FORMS:
        Upsampled(Case(shape, 20, packed=False), form).check(threads=2)


@needs_native
@pytest.mark.parametrize("form", FORMS)
def test_on_every_instruction_set(instruction_set: str, form: str) -> None:  # noqa: F811
    Upsampled(Case((3, 33, 5, 6), 40, packed=False), form, first=20, scale=0.5).check()


@needs_native
@pytest.mark.parametrize("form", FORMS)
def test_its_bits_depend_on_neither_batch_nor_threads(form: str) -> None:
    upsampled = Upsampled(Case((5, 64, 8, 8), 64, residual=False, packed=False), form)
    operands = upsampled.operands()
    alone = []
    for i in range(5):
        of_image = {n: v if n in ("weight", "bias") or v is None else v[i : i + 1] for n, v in operands.items()}
        alone.append(upsampled.ours(of_image, threads=1))
    for threads in (2, 3):
        for found, expected in zip(upsampled.ours(operands, threads), zip(*alone, strict=True), strict=True):
            assert torch.equal(found, torch.cat(expected))


def test_phases_are_for_maps_of_many_tiles_for_their_weights() -> None:
    assert is_worth_phases(256, 256, 16, 16) and is_worth_phases(128, 128, 8, 8)
    assert not is_worth_phases(256, 256, 8, 8) and not is_worth_phases(512, 512, 4, 4)


@pytest.mark.parametrize("shape", [(4, 5, 5, 5), (4, 5, 3), (4, 5), (4, 5, 2, 3)])
def test_a_weight_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"weight is \[4, 5.*\]; \[K, C, 3, 3\] is needed"):
        pack_upsampled_conv_weight(torch.zeros(shape))
