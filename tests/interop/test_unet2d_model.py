"""UNet2DModel of diffusers as a ConditionalUNet: the same output, plain and frozen, and the same weights back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastcond.engine import generate
from fastcond.engine.frozen_unet import FrozenUNet
from fastcond.interop import load_diffusers, save_diffusers
from fastcond.interop.unet2d_config import unet2d_config, unet_config
from fastcond.nn import ConditionalUNet
from tests.support.exported import drawn_in_diffusers
from tests.support.networks import perturb, small_config, small_unet
from tests.tolerances import GRAY_LEVELS, assert_network_close

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

SMALL: dict[str, Any] = {
    "sample_size": 8,
    "layers_per_block": 1,
    "block_out_channels": (16, 32),
    "norm_num_groups": 8,
    "attention_head_dim": 8,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}


_DOWN = {"d": "DownBlock2D", "a": "AttnDownBlock2D", "r": "ResnetDownsampleBlock2D"}
_UP = {"d": "UpBlock2D", "a": "AttnUpBlock2D", "r": "ResnetUpsampleBlock2D"}
_OTHER_WAY_UP = {"D": "AttnUpBlock2D", "A": "UpBlock2D", "R": "UpBlock2D"}


def blocks(levels: str) -> dict[str, Any]:
    """Levels by letter, finest first: plain, attention, resampling residual blocks; of a capital, another block is going up."""
    return {
        "down_block_types": tuple(_DOWN[letter.lower()] for letter in levels),
        "up_block_types": tuple({**_UP, **_OTHER_WAY_UP}[letter] for letter in reversed(levels)),
        "block_out_channels": tuple(16 + 8 * level for level in range(len(levels))),
    }


QUIRKS: dict[str, dict[str, Any]] = {
    "google's ddpm": {
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "downsample_padding": 0,
        "norm_eps": 1e-6,
        "attention_head_dim": None,
    },
    "no norm in the middle": {"resnet_time_scale_shift": "scale_shift"},
    "a norm of its own": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4},
    "another norm": {"attn_norm_num_groups": 16},
    "no attention in the middle": {"add_attention": False},
    "no middle": {"mid_block_type": None},
    "divided sums": {"mid_block_scale_factor": 2**0.5},
    "fourier": {"time_embedding_type": "fourier"},
    "learned": {"time_embedding_type": "learned", "num_train_timesteps": 1000},
    "wide embedding": {"time_embedding_dim": 48},
    "labels as timesteps": {"class_embed_type": "timestep"},
    "labels as vectors": {"class_embed_type": "identity"},
    "centred input": {"center_input_sample": True},
    "resampling going down": {"downsample_type": "resnet"},
    "resampling going up": {"upsample_type": "resnet"},
    "dropout": {"dropout": 0.3},
    "swish": {"act_fn": "swish"},
    "names of old": {"down_block_types": ("UNetResDownBlock2D", "UNetResAttnDownBlock2D")},
}
LEVELS = ["d", "a", "da", "ad", "dr", "ra", "aa", "rr", "dAr", "rad", "dRa", "daar"]


_SKIP = {"s": "Skip", "S": "AttnSkip"}
_IMAGES: dict[str, Any] = {"in_channels": 3, "out_channels": 3, "sample_size": 16, "layers_per_block": 1}
# (levels going down, levels going up, finest first both, what else): s is a Skip block, S one with attention.
SKIPS: list[tuple[str, str, dict[str, Any]]] = [
    ("ss", "ss", {}),
    ("SS", "SS", {"norm_num_groups": None, "norm_eps": 1e-6}),
    ("ssSs", "ssSs", {"norm_num_groups": None, "time_embedding_type": "fourier", "mid_block_scale_factor": 2**0.5}),
    ("sS", "Ss", {"center_input_sample": True, "time_embedding_type": "fourier", "attention_head_dim": None}),
    ("sd", "sd", {"sample_size": (8, 16), "downsample_padding": 0}),
    ("Sar", "sda", {"sample_size": (32, 16), "layers_per_block": 2, "upsample_type": "resnet"}),
    ("srd", "sSs", {"sample_size": (8, 24), "dropout": 0.2, "act_fn": "swish"}),
    ("dda", "ssS", {"in_channels": 4, "sample_size": 12}),
    ("sSs", "rad", {"out_channels": 6, "attn_norm_num_groups": 4}),
    ("sssss", "SSsss", {"layers_per_block": 1, "sample_size": (16, 32)}),
    ("dS", "sd", {"in_channels": 1, "out_channels": 1, "layers_per_block": 3}),
    ("ads", "Sda", {"in_channels": 4, "out_channels": 8}),
    ("s", "s", {"in_channels": 1, "out_channels": 1, "sample_size": (7, 5)}),
    ("S", "S", {"in_channels": 4, "out_channels": 4, "sample_size": 5, "mid_block_type": None}),
    ("S", "d", {"class_embed_type": "timestep", "sample_size": 6}),
    ("dd", "ss", {"in_channels": 1, "add_attention": False, "class_embed_type": "identity"}),
]


def skip_blocks(down: str, up: str) -> dict[str, Any]:
    """Levels by letter, finest first, as in SKIPS."""
    names = [_SKIP.get(letter, "") + "DownBlock2D" if letter in _SKIP else _DOWN[letter] for letter in down]
    up_names = [_SKIP.get(letter, "") + "UpBlock2D" if letter in _SKIP else _UP[letter] for letter in up]
    channels = tuple(32 * (1 + level % 2) for level in range(len(down)))
    return {"down_block_types": tuple(names), "up_block_types": tuple(up_names[::-1]), "block_out_channels": channels}


def configs() -> dict[str, dict[str, Any]]:
    """By name, arguments of UNet2DModel: its quirks one by one, and block types by depth, channels, size and conditioning."""
    found = {name: {**SMALL, "num_class_embeds": None, **change} for name, change in QUIRKS.items()}
    shapes: list[dict[str, Any]] = [
        {"in_channels": 3, "out_channels": 3, "sample_size": 8, "layers_per_block": 1},
        {"in_channels": 1, "out_channels": 1, "sample_size": (8, 16), "layers_per_block": 2},
        {"in_channels": 4, "out_channels": 8, "sample_size": 16, "layers_per_block": 1},
    ]
    for i, levels in enumerate(LEVELS):
        for j, scale_shift in enumerate(("default", "scale_shift")):
            for shape in (shapes[(i + j) % 3], shapes[(i + j + 1) % 3]):
                name = f"{levels} {scale_shift} {shape['sample_size']}x{shape['in_channels']}"
                classes = None if (i + j) % 4 == 3 else 5
                extra = {
                    "resnet_time_scale_shift": scale_shift,
                    "num_class_embeds": classes,
                    "attention_head_dim": (8, 4, None)[i % 3],
                }
                found[name] = {**SMALL, **blocks(levels), **shape, **extra}
    for i, (down, up, change) in enumerate(SKIPS):
        for j, scale_shift in enumerate(("default", "scale_shift")):
            classes = {"num_class_embeds": (5, None)[(i + j) % 2], "resnet_time_scale_shift": scale_shift}
            found[f"{down} {up} {scale_shift}"] = {**SMALL, **skip_blocks(down, up), **_IMAGES, **classes, **change}
    return found


CONFIGS = configs()


def theirs(config: dict[str, Any], seed: int = 0) -> Any:
    torch.manual_seed(seed)
    network = diffusers.UNet2DModel(**config).eval()
    perturb(network, seed)
    return network


def inputs(model: ConditionalUNet) -> tuple[Tensor, Tensor, Tensor]:
    """x_t, timestep, and what the network takes for a label."""
    config = model.config
    x_t = torch.randn(2, config.in_channels, *config.image_size, generator=torch.Generator().manual_seed(1))
    labels = {"identity": torch.randn(2, config.embedding_dim), "none": torch.tensor([0, 0])}
    return x_t, torch.tensor([412, 412]), labels.get(config.class_embedding, torch.tensor([0, 3]))


def test_there_are_enough_of_them() -> None:
    assert len(CONFIGS) >= 98


@pytest.mark.parametrize("name", CONFIGS)
def test_output_weights_and_config(name: str) -> None:
    network = theirs(CONFIGS[name])
    saved = json.loads(network.to_json_string())
    model = ConditionalUNet(unet_config(saved)).eval()
    model.load_state_dict(network.state_dict())
    x_t, timestep, label = inputs(model)
    with torch.no_grad():
        labels = {} if model.config.class_embedding == "none" else {"class_labels": label}
        # Their sinusoid of a label is float32 whatever the network is, so that one cannot run in float64. Fourier features are of
        # hundreds of radians, which float32 rounds by 3e-5: a network that amplifies it is another one in float64.
        in_float32 = model.config.class_embedding == "timestep" or model.config.time_embedding == "fourier"
        wide = torch.float32 if in_float32 else torch.float64
        wide_labels = {key: value.to(wide) if value.is_floating_point() else value for key, value in labels.items()}
        expected = network.to(wide)(x_t.to(wide), timestep, **wide_labels).sample
        assert_network_close(model(x_t, timestep, label), expected)
        if model.config.class_embedding != "identity":
            assert_network_close(FrozenUNet(model)(x_t, 412, label), expected)
            assert_network_close(FrozenUNet(model, use_native=False)(x_t, 412, label), expected)
    # Back: a network that diffusers builds of our config takes our weights, and is the same one.
    back = diffusers.UNet2DModel.from_config(unet2d_config(model.config)).eval()
    back.load_state_dict(model.state_dict())
    with torch.no_grad():
        again = back(x_t, timestep, **labels).sample
    assert_network_close(again, expected)
    assert unet_config(unet2d_config(model.config)) == model.config


@pytest.mark.parametrize("name", CONFIGS)
def test_files_and_images(name: str, tmp_path: Path) -> None:
    """diffusers' files, through fastcond, are the same bytes; and diffusers draws from fastcond's folder what fastcond draws."""
    network, source, target = theirs(CONFIGS[name]), tmp_path / "source", tmp_path / "target"
    channels, out_channels = network.config.in_channels, network.config.out_channels
    # Trailing: networks of fourier features are told log t, so never 0. Twice the channels are a learned variance.
    learned = {"variance_type": "learned_range"} if out_channels == 2 * channels else {}
    scheduler = diffusers.DDPMScheduler(timestep_spacing="trailing", **learned)
    diffusers.DDPMPipeline(network, scheduler).save_pretrained(source)
    model = load_diffusers(source)
    save_diffusers(model, target)
    before, after = (folder / "unet" / "diffusion_pytorch_model.safetensors" for folder in (source, target))
    assert before.read_bytes() == after.read_bytes()
    if out_channels not in (channels, 2 * channels):
        return  # no network to sample from; its output is compared above
    labels = inputs(model)[2]
    ours = generate(model, labels, sampler="scheduler", steps=2, rng="torch", seed=5)
    told = {"batch_size": 2} if model.config.class_embedding == "none" else {"class_labels": labels}
    drawn = drawn_in_diffusers(target, seed=5, num_inference_steps=2, **told)
    assert drawn.std() > 10 and np.abs(drawn - ours).max() <= GRAY_LEVELS


def test_there_are_enough_networks_to_sample_from() -> None:
    channels = [(config.get("in_channels", 3), config.get("out_channels", 3)) for config in CONFIGS.values()]
    assert sum(into in (out, out / 2) for into, out in channels) >= 60


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_fn": "mish"}, "act_fn is 'mish', which fastcond has no counterpart for; it knows silu"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift is 'spatial'"),
        ({"mid_block_type": "UNetMidBlock2DCrossAttn"}, "mid_block_type is 'UNetMidBlock2DCrossAttn'"),
        ({"class_embed_type": "projection"}, "class_embed_type is 'projection'"),
        ({"down_block_types": ["KDownBlock2D", "DownBlock2D"]}, "down_block_types is 'KDownBlock2D', which fastcond has no"),
        ({"norm_num_groups": None}, "norm_num_groups is None, which only Skip blocks allow; give a number"),
        ({"up_block_types": ["UpBlock2D"]}, "up_block_types has 1 entries for 2 levels"),
        ({"_class_name": "UNet3DModel"}, "_class_name is 'UNet3DModel'; a config of UNet2DModel is needed"),
        ({"block_out_channels": 64}, "block_out_channels in config.json is 64, a value of another type"),
        ({"layers_per_block": "two"}, "layers_per_block in config.json is 'two', a value of another type"),
        ({"down_block_types": "DownBlock2D"}, "down_block_types is 'DownBlock2D'"),
        ({"num_class_embeds": "5"}, "num_class_embeds is '5'"),
        ({"sample_size": 7}, "image size 7x7 does not fit a network of 2 levels"),
    ],
)
def test_what_has_no_counterpart_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unet_config({**SMALL, **change})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conditioning": "adagn"}, "conditioning 'adagn' cannot be expressed in diffusers' UNet2DModel"),
        ({"class_embedding_mlp": True}, "has no MLP behind its class-embedding table"),
    ],
)
def test_what_diffusers_cannot_express_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unet2d_config(small_config(**{"conditioning": "bias", **changes}))


@pytest.mark.parametrize("resample", ["conv", "resnet"])
@pytest.mark.parametrize("conditioning", ["bias", "scale_shift"])
def test_our_own_networks_in_diffusers(conditioning: str, resample: str) -> None:
    model = small_unet(conditioning=conditioning, resample=resample, attention_resolutions=(8,)).eval()
    network = diffusers.UNet2DModel.from_config(unet2d_config(model.config)).eval()
    network.load_state_dict(model.state_dict())
    x_t, timestep, label = inputs(model)
    with torch.no_grad():
        assert_network_close(network(x_t, timestep, class_labels=label).sample, model(x_t, timestep, label).double())
