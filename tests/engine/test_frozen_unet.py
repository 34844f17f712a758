"""FrozenUNet is the model, for every kind of network."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastcond.config import CONDITIONINGS
from fastcond.engine import frozen_unet
from fastcond.engine.conditioning_table import ConditioningTable
from fastcond.engine.frozen_unet import FrozenUNet
from tests.support.frozen_networks import assert_equals_the_model, inputs
from tests.support.kernels import kernel  # noqa: F401  (runs every test behind each CPU kernel)
from tests.support.networks import SKIP_BLOCKS, small_unet
from tests.tolerances import FP64_NETWORK, assert_network_close


@pytest.mark.parametrize("channels", [(8, 16), (16, 32), (24, 40)])
@pytest.mark.parametrize("resample", ["conv", "resnet"])
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_every_conditioning_and_resampling(conditioning: str, resample: str, channels: tuple[int, ...]) -> None:
    """Channels that fill sixteen lanes and such that do not, where a skip is joined within the lanes."""
    model = small_unet(conditioning=conditioning, resample=resample, block_out_channels=channels, layers_per_block=2).eval()
    assert_equals_the_model(model, *inputs(model))


@pytest.mark.parametrize(
    "changes",
    [
        {"class_embedding_mlp": True},
        {"attention_resolutions": (8, 4)},
        {"attention_resolutions": ()},
        {"block_out_channels": (8,)},
        {"block_out_channels": (8, 16, 24, 32), "layers_per_block": 1},
        {"in_channels": 1, "out_channels": 1},
        {"in_channels": 4, "out_channels": 8},
        {"in_channels": 17, "out_channels": 17},
        {"image_size": (12, 20), "attention_resolutions": (20,)},
        {"image_size": (2, 6)},
        {"dropout": 0.5},
        {"norm_num_groups": 1, "norm_eps": 1e-3},
        {"block_out_channels": (64, 128), "norm_num_groups": 32, "attention_head_dim": 32},
    ],
    ids=str,
)
def test_every_shape_of_network(changes: dict[str, Any]) -> None:
    model = small_unet(**changes).eval()
    assert_equals_the_model(model, *inputs(model))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"conditioning": "scale_shift", "image_size": (12, 20), "mid_block_scale_factor": 2**0.5},
        {"conditioning": "adagn", "layers_per_block": 3},
        {"image_size": (2, 6), "center_input": True},
        {
            "down_block_types": ("SkipDownBlock2D",) * 2,
            "up_block_types": ("SkipUpBlock2D",) * 2,
            "block_out_channels": (24, 40),
            "mid_attention": False,
        },
    ],
    ids=str,
)
def test_skip_blocks(changes: dict[str, Any]) -> None:
    model = small_unet(**{**SKIP_BLOCKS, **changes}).eval()
    for size in (None, (4, 2), (2, 6)):
        assert_equals_the_model(model, *inputs(model, size=size))


def test_other_sizes_than_the_config_s() -> None:
    model = small_unet().eval()
    for size in ((4, 4), (16, 8), (8, 8)):
        assert_equals_the_model(model, *inputs(model, size=size))


def test_a_size_that_the_levels_do_not_divide_is_refused() -> None:
    model = small_unet().eval()
    x_t, label = inputs(model, size=(7, 8))
    with pytest.raises(ValueError, match="x_t is 7x8; 2 levels need multiples of 2"):
        FrozenUNet(model)(x_t, 3, label)


def test_layouts_and_strides_of_x() -> None:
    model = small_unet().eval()
    x_t, label = inputs(model, batch=4)
    expected = FrozenUNet(model)(x_t, 3, label)
    for layout in (x_t.contiguous(memory_format=torch.channels_last), x_t.flip(3).flip(3), x_t.repeat(1, 1, 1, 2)[..., :8]):
        assert_network_close(FrozenUNet(model)(layout, 3, label), expected)


def test_float64_runs_as_it_is() -> None:
    model = small_unet().eval().double()
    x_t, label = inputs(model)
    with torch.no_grad():
        expected = model(x_t.double(), torch.full((3,), 3), label)
    actual = FrozenUNet(model)(x_t.double(), 3, label)
    assert actual.dtype == torch.float64 and torch.allclose(actual, expected, **FP64_NETWORK)


def test_rows_of_a_table_that_is_not_held_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model, timesteps = small_unet().eval(), torch.tensor([900, 400, 400, 10])
    x_t, label = inputs(model)
    expected = [FrozenUNet(model)(x_t, int(t), label) for t in timesteps]
    small = lambda *arguments: ConditioningTable(*arguments, max_bytes=1)  # noqa: E731
    monkeypatch.setattr(frozen_unet, "ConditioningTable", small)
    denoiser = FrozenUNet(model).denoiser(timesteps, label)
    for row, of_row in enumerate(expected):
        assert_network_close(denoiser(x_t, torch.tensor([row])), of_row)


def test_fewer_images_than_labels_are_the_first() -> None:
    model = small_unet().eval()
    x_t, label = inputs(model, batch=6)
    denoiser, row = FrozenUNet(model).denoiser(torch.tensor([7]), label), torch.tensor([0])
    assert_network_close(denoiser(x_t[:2], row), denoiser(x_t, row)[:2])


def test_no_images() -> None:
    model = small_unet().eval()
    assert FrozenUNet(model)(torch.empty(0, 3, 8, 8), 3, torch.tensor([1]))[:0].shape == (0, 3, 8, 8)


def test_the_model_is_left_as_it_was() -> None:
    model = small_unet(dropout=0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x_t, label = inputs(model)
    first = FrozenUNet(model)(x_t, 3, label)
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(FrozenUNet(model)(x_t, 3, label), first), "no dropout"
    assert not first.requires_grad


def test_a_module_that_the_walk_does_not_know_is_refused() -> None:
    model = small_unet()
    model.down_blocks[0].resnets[0] = torch.nn.Identity()  # type: ignore[index,union-attr]
    with pytest.raises(TypeError, match="a network with a Identity has no inference form"):
        FrozenUNet(model)(*(lambda x, label: (x, 3, label))(*inputs(model)))
