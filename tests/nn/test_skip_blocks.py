"""Skip blocks and their filter: what the filter computes, which networks can be built, and that every weight of one acts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastcond.nn import ConditionalUNet
from fastcond.nn.blocks import FirFilter
from tests.support.networks import SKIP_BLOCKS, small_config, small_unet
from tests.tolerances import FP64, assert_within_floor


def filtered(x: Tensor, how: str) -> Tensor:
    """The definition: zeros between the pixels, a zero border, a weighted sum of 4x4 neighbours, every other pixel kept."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype) / 8
    batch, channels, height, width = x.shape
    if how == "up":
        spread = x.new_zeros(batch, channels, 2 * height, 2 * width)
        spread[..., ::2, ::2] = 4 * x
        x, before, after = spread, 2, 1
    else:
        before, after = 1, 1
    bordered = torch.zeros(batch, channels, x.shape[2] + before + after, x.shape[3] + before + after, dtype=x.dtype)
    bordered[..., before : before + x.shape[2], before : before + x.shape[3]] = x
    y = bordered.unfold(2, 4, 1).unfold(3, 4, 1)
    y = torch.einsum("bchwij,i,j->bchw", y, taps, taps)
    return y if how == "up" else y[..., ::2, ::2]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(2, 3, 8, 6), (1, 1, 2, 2), (3, 5, 4, 12), (2, 16, 2, 8)])
@pytest.mark.parametrize("how", ["down", "up"])
def test_the_filter_is_its_definition(how: Any, shape: tuple[int, ...], layout: torch.memory_format) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(memory_format=layout)
    expected = filtered(x.double(), how)
    assert_within_floor(how, FirFilter()(x, how), expected, magnitude=float(x.abs().max()), terms=16)
    torch.testing.assert_close(FirFilter().double()(x.double(), how), expected, **FP64)


def test_the_filter_is_no_part_of_the_weights_and_exact_in_16_bits() -> None:
    layer = FirFilter()
    assert not layer.state_dict() and not list(layer.parameters())
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(layer.kernel.to(dtype).float(), layer.kernel)


def test_a_constant_map_keeps_its_value_away_from_the_edges() -> None:
    constant = torch.full((1, 2, 8, 8), 3.0)
    for how in ("down", "up"):
        inner = FirFilter()(constant, how)[..., 1:-1, 1:-1]
        assert torch.equal(inner, torch.full_like(inner, 3.0))


@pytest.mark.parametrize("conditioning", ["adagn", "scale_shift", "bias"])
def test_every_weight_acts(conditioning: str) -> None:
    model = small_unet(**{**SKIP_BLOCKS, "conditioning": conditioning})
    x_t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model(x_t, torch.tensor([3, 500]), torch.tensor([0, 2])).square().mean().backward()
    still = [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    # A key's bias shifts all scores of a query alike.
    assert [name for name in still if not name.endswith("to_k.bias")] == []


SKIP_DOWN, SKIP_UP = ("SkipDownBlock2D",) * 2, ("SkipUpBlock2D",) * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"down_block_types": SKIP_DOWN, "in_channels": 1},
            r"in_channels is 1, but the SkipDownBlock2D of level 0 \(0 is the finest\) resamples an image of 3 channels; "
            "give 3 or another block type",
        ),
        ({"up_block_types": SKIP_UP, "out_channels": 6}, "out_channels is 6, but the SkipUpBlock2D of level 1 "),
        (
            {"up_block_types": ("AttnSkipUpBlock2D", "UpBlock2D")},
            r"up_block_types is \('AttnSkipUpBlock2D', 'UpBlock2D'\), but the AttnSkipUpBlock2D of level 1 \(0 is the finest\) "
            "resamples an image that the UpBlock2D of level 0 does not; use Skip blocks at all finer levels, or not here",
        ),
        (
            {
                "down_block_types": ("DownBlock2D", "SkipDownBlock2D", "DownBlock2D"),
                "block_out_channels": (32, 32, 32),
            },
            r"down_block_types is \('DownBlock2D', 'SkipDownBlock2D', 'DownBlock2D'\), but the SkipDownBlock2D of level 1 .* "
            "that the DownBlock2D of level 0 does not",
        ),
        ({"down_block_types": SKIP_DOWN, "block_out_channels": (32, 36)}, "36 channels cannot be divided into 32 groups"),
        (
            {"down_block_types": SKIP_DOWN, "up_block_types": SKIP_UP, "block_out_channels": (32, 74), "mid_block": False},
            "a norm of 74 channels cannot have 18 groups; change block_out_channels$",
        ),
        (
            {
                "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
                "block_out_channels": (32, 48),
                "norm_num_groups": 16,
            },
            "a norm of 48 channels cannot have 32 groups; change block_out_channels$",
        ),
        (
            {"mid_attention_norm_groups": 24},
            "a norm of 64 channels cannot have 24 groups; change block_out_channels or mid_attention_norm_groups",
        ),
        ({"norm_num_groups": None}, "norm_num_groups is None, which only Skip blocks allow; give a number"),
        (
            {"down_block_types": SKIP_DOWN, "conditioning": "label_attention"},
            "SkipDownBlock2D cannot be combined with conditioning 'label_attention'",
        ),
    ],
)
def test_what_cannot_be_built_is_refused(changes: dict[str, Any], message: str) -> None:
    options = {"block_out_channels": (32, 64), "norm_num_groups": 32, "conditioning": "bias", "image_size": (16, 16), **changes}
    with pytest.raises(ValueError, match=message) as caught:
        ConditionalUNet(small_config(**options))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes", [{"down_block_types": SKIP_DOWN, "in_channels": 1}, {"up_block_types": (*SKIP_UP[:1], "UpBlock2D")}]
)
def test_an_image_that_does_not_fit_is_refused_before_there_is_a_network(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"of level \d \(0 is the finest\) resamples an image"):
        small_config(conditioning="bias", **changes)
