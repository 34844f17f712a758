"""Folders of diffusers that are damaged or claim nonsense: one line that names the file, on the command lines too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from fastcond.interop.diffusers import load_diffusers
from tests.support.command_lines import assert_one_line, convert_here, sample_here
from tests.support.foreign import condition_network, plain_network, save_blog

pytest.importorskip("diffusers", reason="diffusers is not installed")

NESTED = "[" * 100_000 + "]" * 100_000
WEIGHTS, CONFIG = "diffusion_pytorch_model.safetensors", "config.json"
Damage = Callable[[Path], None]


def weight(value: torch.Tensor) -> Damage:
    """conv_in.bias, of 16 numbers, replaced."""

    def damage(folder: Path) -> None:
        weights = safetensors.torch.load_file(folder / WEIGHTS)
        safetensors.torch.save_file({**weights, "conv_in.bias": value}, folder / WEIGHTS)

    return damage


def legacy(name: Any, value: Any) -> Damage:
    """The weights in PyTorch's own format, with one more or another."""

    def damage(folder: Path) -> None:
        weights = safetensors.torch.load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        torch.save({**weights, name: value}, folder / "diffusion_pytorch_model.bin")

    return damage


def config(**changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        said = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**said, **changes}))

    return damage


def text(name: str, content: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)

    return damage


def deep_index(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / f"{WEIGHTS}.index.json").write_text(NESTED)


def class_name_kept(content: str) -> str:
    """A config that is told to be one of diffusers."""
    return f'{{"_class_name": "UNet2DModel", "x": {content}}}'


SCHEDULER = "scheduler/scheduler_config.json"
DAMAGES: dict[str, tuple[Damage, str]] = {
    "scaled eight bits": (weight(torch.ones(16).to(torch.float8_e8m0fnu)), "conv_in.bias is torch.float8_e8m0fnu, no weights"),
    "more than float32": (
        weight(torch.full((16,), 1e300, dtype=torch.float64)),
        "conv_in.bias holds numbers that are too large for float32",
    ),
    "not a number in float64": (weight(torch.full((16,), torch.nan, dtype=torch.float64)), "conv_in.bias holds .* not finite"),
    "sparse": (legacy("conv_in.bias", torch.ones(16).to_sparse()), r"model.bin: conv_in.bias .*\(torch.sparse_coo\)"),
    "meta": (legacy("conv_in.bias", torch.ones(16, device="meta")), r"model.bin: conv_in.bias .*\(without numbers\)"),
    "nested": (legacy("conv_in.bias", torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])), "diffusion_pytorch_model.bin"),
    "a number for a name": (legacy(7, torch.ones(1)), "model.bin holds a tensor by the name 7, which is no text"),
    "negative channels": (config(block_out_channels=[-16, 32]), "config.json: block_out_channels is -16; it must be at least 1"),
    "huge channels": (config(block_out_channels=[2**40, 2**41]), "config.json: block_out_channels is 1099.*; it must be at most"),
    "channels that are not there": (config(block_out_channels=[2**20, 2**21]), "; its config says .*4194304"),
    "a negative embedding": (config(time_embedding_dim=-1), "config.json: time_embedding_dim is -1; it must be at least 1"),
    "an empty embedding": (config(time_embedding_dim=0), "config.json: time_embedding_dim is 0; it must be at least 1"),
    "a list for a word": (config(resnet_time_scale_shift=[1]), r"config.json: resnet_time_scale_shift is \[1\]"),
    "a pole of the waves": (config(freq_shift=8), "config.json: freq_shift is 8 for 16 channels; it must be finite and less"),
    "no shift of the waves": (config(freq_shift=float("nan")), "config.json: freq_shift is nan"),
    "negative eps": (config(norm_eps=-1), "config.json: norm_eps is -1; it must be positive and finite"),
    "no eps": (config(norm_eps=float("nan")), "config.json: norm_eps is nan; it must be positive and finite"),
    "infinite sums": (config(mid_block_scale_factor=float("inf")), "config.json: mid_block_scale_factor is inf"),
    "groups that do not divide": (config(attn_norm_num_groups=7), "config.json: a norm of 32 channels cannot have 7 groups"),
    "no groups": (config(attn_norm_num_groups=0), "config.json: attn_norm_num_groups is 0"),
    "a billion layers": (config(layers_per_block=10**9), "2 levels of 1000000000 layers: the weights are"),
    "a million layers": (config(layers_per_block=10**6), "2 levels of 1000000 layers: the weights are"),
    "a nested config": (text(CONFIG, class_name_kept(NESTED)), "config.json is not valid JSON"),
    "digits in the config": (text(CONFIG, class_name_kept("9" * 5001)), "config.json is not valid JSON"),
    "a nested scheduler": (text(SCHEDULER, NESTED), "scheduler_config.json is not valid JSON"),
    "digits in the scheduler": (
        text(SCHEDULER, f'{{"num_train_timesteps": {"9" * 5001}}}'),
        "scheduler_config.json is not valid",
    ),
    "a nested index": (text("model_index.json", NESTED), "model_index.json is not valid JSON"),
    "nested class names": (text("class_labels.json", NESTED), "class_labels.json is not valid JSON"),
    "a nested index of shards": (deep_index, "index.json is no index of shards"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_folder_is_one_line(tmp_path: Path, what: str) -> None:
    damage, message = DAMAGES[what]
    plain_network().save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        load_diffusers(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "what",
    [
        *("scaled eight bits", "sparse", "a number for a name", "negative channels", "a list for a word", "a pole of the waves"),
        *("groups that do not divide", "a billion layers", "a nested config", "a nested scheduler", "digits in the scheduler"),
    ],
)
def test_on_the_command_line_too(tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str) -> None:
    """Exit code 2 and one line, with nothing before it, of each command that loads."""
    damage, _ = DAMAGES[what]
    plain_network().save_pretrained(tmp_path / "in")
    damage(tmp_path / "in")
    assert_one_line(
        sample_here("--run", tmp_path / "in", "--label", "0", "--out", tmp_path / "out"), capsys, str(tmp_path / "in")
    )
    assert_one_line(convert_here(tmp_path / "in", tmp_path / "out"), capsys, str(tmp_path / "in"))
    assert not (tmp_path / "out").exists()


def test_a_token_s_sizes_are_bounded(tmp_path: Path) -> None:
    for change, message in (
        ({"cross_attention_dim": 0}, "label_context_dim is 0"),
        ({"encoder_hid_dim": -3}, "label_token_dim is -3"),
        ({"attention_head_dim": -4}, "label_attention_heads is -4"),
        ({"encoder_hid_dim": None}, "encoder_hid_dim_type is 'text_proj' with encoder_hid_dim None"),
        ({"encoder_hid_dim_type": "image_proj"}, "encoder_hid_dim_type is 'image_proj' with encoder_hid_dim 12"),
    ):
        folder = save_blog(tmp_path, "emb_net.pth")
        config(**change)(folder)
        with pytest.raises(ValueError, match=f"config.json: {message}"):
            load_diffusers(folder)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_file_in_a_folder_s_place(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    condition_network().save_pretrained(tmp_path)
    code = sample_here("--run", tmp_path / name, "--label", "0")
    assert_one_line(code, capsys, f"{name} is a file; name the folder with config.json and weights, such as {tmp_path}")
    (tmp_path / "adm.pt").write_bytes(b"")
    code = sample_here("--run", tmp_path / "adm.pt", "--label", "0")
    assert_one_line(code, capsys, "is converted first: python -m fastcond.convert")
