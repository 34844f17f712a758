"""Every block type that diffusers knows: what a UNet2DModel of it does here, and where Skip blocks may stand."""

from __future__ import annotations

import inspect
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from fastcond.engine import FrozenUNet, generate
from fastcond.interop.diffusers import load_diffusers, save_diffusers
from fastcond.interop.unet2d_config import unet_config
from fastcond.nn import ConditionalUNet
from tests.support.networks import perturb
from tests.tolerances import assert_network_close

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

LOADED = {
    "down": {"DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D", "SkipDownBlock2D", "AttnSkipDownBlock2D"},
    "up": {"UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D", "SkipUpBlock2D", "AttnSkipUpBlock2D"},
}
# What diffusers' factories know too. Of other models (UNet2DConditionModel, autoencoders), whose calls no UNet2DModel makes:
FAILS_IN_DIFFUSERS = {
    "down": {"CrossAttnDownBlock2D", "SimpleCrossAttnDownBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"},
    "up": {"CrossAttnUpBlock2D", "SimpleCrossAttnUpBlock2D", "UpDecoderBlock2D", "AttnUpDecoderBlock2D"},
}
# Of the K-diffusion upscaler's UNet2DConditionModel; a UNet2DModel can run some of them, and they are refused all the same.
OF_K_DIFFUSION = {"down": {"KDownBlock2D", "KCrossAttnDownBlock2D"}, "up": {"KUpBlock2D", "KCrossAttnUpBlock2D"}}
CONFIG: dict[str, Any] = {
    "sample_size": 16,
    "layers_per_block": 1,
    "block_out_channels": (32, 32),
    "norm_num_groups": 8,
    "attention_head_dim": 8,
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
}


def theirs(**changes: Any) -> Any:
    torch.manual_seed(0)
    network = diffusers.UNet2DModel(**{**CONFIG, **changes}).eval()
    perturb(network)
    return network


@torch.no_grad()
def output(network: Any, **labels: Tensor) -> Tensor:
    config, generator = network.config, torch.Generator().manual_seed(1)
    x_t, timestep = torch.randn(2, config.in_channels, 16, 16, generator=generator), torch.tensor([412, 7])
    if isinstance(network, ConditionalUNet):
        return network(x_t, timestep, labels.get("class_labels", torch.zeros(2, dtype=torch.int64)))
    return network(x_t, timestep, **labels).sample


def ours(network: Any) -> ConditionalUNet:
    model = ConditionalUNet(unet_config(json.loads(network.to_json_string()))).eval()
    model.load_state_dict(network.state_dict())
    return model


def known_to_diffusers(way: str) -> set[str]:
    from diffusers.models.unets import unet_2d_blocks

    names = re.findall(rf'{way}_block_type == "(\w+)"', inspect.getsource(getattr(unet_2d_blocks, f"get_{way}_block")))
    return set(names)


def of_type(way: str, name: str) -> dict[str, Any]:
    return {f"{way}_block_types": (name, name)}


@pytest.mark.parametrize("way", ["down", "up"])
def test_every_name_of_the_installed_diffusers_is_accounted_for(way: str) -> None:
    assert known_to_diffusers(way) == LOADED[way] | FAILS_IN_DIFFUSERS[way] | OF_K_DIFFUSION[way]


@pytest.mark.parametrize(("way", "name"), [(way, name) for way in ("down", "up") for name in sorted(LOADED[way])])
def test_what_is_loaded_computes_the_same(way: str, name: str) -> None:
    network = theirs(**of_type(way, name))
    assert_network_close(output(ours(network)), output(network).double())
    old = theirs(**of_type(way, f"UNetRes{name}"))
    assert_network_close(output(ours(old)), output(network).double())


@pytest.mark.parametrize(
    ("way", "name"),
    [(way, name) for way in ("down", "up") for name in sorted(FAILS_IN_DIFFUSERS[way] | OF_K_DIFFUSION[way])],
)
def test_what_is_not_is_refused_in_one_line(way: str, name: str) -> None:
    with pytest.raises(
        ValueError, match=f"{way}_block_types is '{name}', which fastcond has no counterpart for; it knows"
    ) as caught:
        unet_config({**CONFIG, **of_type(way, name)})
    message = str(caught.value)
    assert "\n" not in message and all(known in message for known in LOADED[way])


@pytest.mark.parametrize(("way", "name"), [(way, name) for way in ("down", "up") for name in sorted(FAILS_IN_DIFFUSERS[way])])
def test_what_is_said_to_fail_in_diffusers_does(way: str, name: str) -> None:
    with pytest.raises((ValueError, TypeError)):
        output(theirs(**of_type(way, name)))


def test_k_blocks_are_refused_though_diffusers_can_run_some() -> None:
    config = {"down_block_types": ("KDownBlock2D",) * 2, "up_block_types": ("KUpBlock2D",) * 2}
    network = theirs(**config)
    assert torch.isfinite(output(network)).all()
    with pytest.raises(ValueError, match="down_block_types is 'KDownBlock2D'"):
        ours(network)


def placements() -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Of three levels, finest first: plain or Skip blocks both ways."""
    each = list(itertools.product(("", "Skip"), repeat=3))
    return list(itertools.product(each, each))


def named(down: Sequence[str], up: Sequence[str]) -> dict[str, Any]:
    down_types, up_types = tuple(f"{kind}DownBlock2D" for kind in down), tuple(f"{kind}UpBlock2D" for kind in reversed(up))
    return {"down_block_types": down_types, "up_block_types": up_types, "block_out_channels": (32, 32, 64)}


def test_skip_blocks_stand_where_they_can_in_diffusers() -> None:
    """Where diffusers fails over two sizes of an image and a map, the network is refused; everywhere else it is the same one."""
    found = {True: 0, False: 0}
    for down, up in placements():
        network = theirs(**named(down, up))
        try:
            expected = output(network)
        except RuntimeError:
            with pytest.raises(ValueError, match=r"resamples an image that the (Down|Up)Block2D of level \d does not"):
                ours(network)
            found[False] += 1
        else:
            assert_network_close(output(ours(network)), expected.double())
            found[True] += 1
    assert found == {True: 24, False: 40}


def test_timesteps_that_are_noise_levels() -> None:
    """As NCSN++ is told them: the embedding takes their logarithm, and the output is divided by them."""
    skip = {"down_block_types": ("SkipDownBlock2D",) * 2, "up_block_types": ("SkipUpBlock2D",) * 2, "center_input_sample": True}
    network = theirs(**skip, time_embedding_type="fourier", norm_num_groups=None)
    model, sigmas = ours(network), torch.tensor([1348.0, 3.7, 0.01])
    frozen, label = FrozenUNet(model), torch.zeros(2, dtype=torch.int64)
    x_t = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    for row, sigma in enumerate(sigmas):
        with torch.no_grad():
            expected = network(x_t, sigma).sample
            assert_network_close(model(x_t, sigma.expand(2), label), expected.double())
            assert_network_close(frozen.denoiser(sigmas, label)(x_t, torch.tensor([row])), expected.double())


def test_a_folder_of_ncsnpp_and_back(tmp_path: Path) -> None:
    """Google's NCSN++ in small: all that its config has, and its weights' bytes."""
    config = {
        "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"),
        "up_block_types": ("SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
        "block_out_channels": (32, 64, 64),
        "norm_num_groups": None,
        "norm_eps": 1e-6,
        "attention_head_dim": None,
        "time_embedding_type": "fourier",
        "mid_block_scale_factor": 1.41421356237,
        "num_class_embeds": 3,
    }
    network, source, target = theirs(**config), tmp_path / "source", tmp_path / "target"
    network.save_pretrained(source)
    model = load_diffusers(source)
    labels = {"class_labels": torch.tensor([0, 2])}
    expected = output(network, **labels)
    assert_network_close(output(model, **labels), expected.double())
    save_diffusers(model, target)
    before, after = (
        safetensors.torch.load_file(path / "diffusion_pytorch_model.safetensors") for path in (source, target / "unet")
    )
    assert before.keys() == after.keys()
    assert all(before[name].numpy().tobytes() == after[name].numpy().tobytes() for name in before)
    back = diffusers.UNet2DModel.from_pretrained(target / "unet").eval()
    assert torch.equal(output(back, **labels), expected)
    described = [json.loads((path / "config.json").read_text()) for path in (source, target / "unet")]
    assert described[1].items() <= {**described[0], "_class_name": "UNet2DModel"}.items()
    again = load_diffusers(target)
    assert again.config == model.config
    images = generate(model, [0, 2], sampler="ddim", steps=3)
    assert (generate(again, [0, 2], sampler="ddim", steps=3) == images).all()


def test_a_pipeline_in_one_folder(tmp_path: Path) -> None:
    """As google/ddpm-* are: no unet/ and no scheduler/, which diffusers reads too."""
    network, nested = theirs(), tmp_path / "nested"
    diffusers.DDPMPipeline(network, diffusers.DDPMScheduler(num_train_timesteps=200)).save_pretrained(nested)
    flat = tmp_path / "flat"
    flat.mkdir()
    for part in (
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json",
    ):
        (nested / part).rename(flat / Path(part).name)
    assert diffusers.DDPMPipeline.from_pretrained(flat).scheduler.config.num_train_timesteps == 200
    model = load_diffusers(flat)
    assert model.diffusion.num_timesteps == 200
    assert_network_close(output(model), output(network).double())
