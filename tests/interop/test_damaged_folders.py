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
from fastcond.interop.opening import open_model
from fastcond.interop.weights import read_file
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


def stranger(folder: Path) -> None:
    """One more weight, whose name a terminal would obey."""
    weights = safetensors.torch.load_file(folder / WEIGHTS)
    safetensors.torch.save_file({**weights, "evil\n\x1b[31mname" + "x" * 5000: torch.ones(1)}, folder / WEIGHTS)


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
    "a name for a terminal": (stranger, r"1 unknown \(evil\\n\\x1b\[31mnamex+\)"),
    "a sparse name for a terminal": (legacy("\x1b[31m", torch.ones(2).to_sparse()), r"model.bin: \\x1b\[31m is a tensor of"),
    "a class name for a terminal": (
        text("class_labels.json", json.dumps({"label2id": {"a": 0, "b": 1, "c": 2, "\x1b[2Jc\nsecond line": 3}})),
        r"class_labels.json: label2id names a class '\\x1b\[2Jc\\nsecond line', with characters that cannot be printed; rename",
    ),
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
        open_model(tmp_path)
    assert str(caught.value).isprintable() and str(tmp_path) in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "what",
    [
        *("scaled eight bits", "sparse", "a number for a name", "negative channels", "a list for a word", "a pole of the waves"),
        *(
            "a name for a terminal",
            "a class name for a terminal",
            "groups that do not divide",
            "a billion layers",
            "a nested config",
            "a nested scheduler",
            "digits in the scheduler",
        ),
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


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_of_pytorch_that_is_cut_anywhere(tmp_path: Path, zipped: bool) -> None:
    """In today's format, and in that of before PyTorch 1.6."""
    path = tmp_path / "mlp.pth"
    torch.save({"0.weight": torch.ones(2, 3), "0.bias": torch.ones(2)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    assert read_file(path)["0.bias"].tolist() == [1, 1]
    for length in range(0, len(whole), 7 if zipped else 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"mlp\.pth is no whole file of weights") as caught:
            read_file(path)
        assert str(caught.value).isprintable()


LARGE = 10**400
SCHEDULER_NUMBERS = [
    *(("DDPMScheduler", key) for key in ("clip_sample_range", "sample_max_value", "dynamic_thresholding_ratio", "beta_end")),
    *(("DPMSolverMultistepScheduler", key) for key in ("lambda_min_clipped", "flow_shift")),
    *(("EulerDiscreteScheduler", key) for key in ("sigma_min", "sigma_max")),
    *(("EDMEulerScheduler", key) for key in ("sigma_max", "sigma_data", "rho")),
]


@pytest.mark.parametrize("value", [LARGE, -LARGE, 1e39, -1e39], ids=["1e400", "-1e400", "1e39", "-1e39"])
@pytest.mark.parametrize(("name", "key"), SCHEDULER_NUMBERS)
def test_numbers_that_no_float_is(tmp_path: Path, name: str, key: str, value: int) -> None:
    plain_network().save_pretrained(tmp_path)
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"_class_name": name, key: value}))
    with pytest.raises(ValueError, match=rf"scheduler_config.json: {name} has {key} -?1(0+\.\.\.|e\+39); a number") as caught:
        load_diffusers(tmp_path)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("settings", [{"rho": 1e-3}, {"rho": 1e-300}, {"rho": 1e-3, "sigma_max": 1e30}], ids=str)
def test_noise_levels_that_no_float_is(tmp_path: Path, settings: dict[str, Any]) -> None:
    plain_network().save_pretrained(tmp_path)
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"_class_name": "EDMEulerScheduler", **settings}))
    with pytest.raises(ValueError, match=r"scheduler_config.json: EDMEulerScheduler has sigma_max .* no float64 holds"):
        load_diffusers(tmp_path)


@pytest.mark.parametrize(
    "value", ["x" * 5000, LARGE, -LARGE, ["x" * 5000], {"x" * 5000: 1}], ids=["text", "+", "-", "list", "object"]
)
@pytest.mark.parametrize("kind", ["plain", "blog"])
def test_long_values_are_cut(tmp_path: Path, kind: str, value: Any) -> None:
    """In every key of a config, a message is short, and an error one that was foreseen."""
    folder = tmp_path
    if kind == "plain":
        plain_network().save_pretrained(folder)
    else:
        folder = save_blog(tmp_path, "emb_net.pth")
    said = json.loads((folder / CONFIG).read_text())
    ignored = []
    for key in said:
        (folder / CONFIG).write_text(json.dumps({**said, key: value}))
        try:
            load_diffusers(folder)
            ignored.append(key)
        except ValueError as error:
            assert len(str(error)) < 600 + len(str(folder)) and str(error).isprintable(), key
    assert len(ignored) < len(said) / 2
    (folder / CONFIG).write_text(json.dumps(said))
    (folder / "class_labels.json").write_text(json.dumps({"null_class_id": value}))
    with pytest.raises(ValueError, match=r"class_labels.json says null_class_id .*; only") as caught:
        load_diffusers(folder)
    assert len(str(caught.value)) < 600


def test_a_token_s_sizes_are_bounded(tmp_path: Path) -> None:
    for change, message in (
        ({"cross_attention_dim": 0}, "cross_attention_dim is 0; it must be at least 1"),
        ({"encoder_hid_dim": -3}, "encoder_hid_dim is -3; it must be at least 1"),
        ({"attention_head_dim": -4}, "attention_head_dim is -4; it must be at least 1"),
        ({"num_attention_heads": -4}, "num_attention_heads is -4; it must be at least 1"),
        ({"encoder_hid_dim": "x"}, "encoder_hid_dim is 'x'; one number for all blocks is needed"),
        ({"cross_attention_dim": 2**30}, "cross_attention_dim is 1073741824; it must be at most"),
        ({"encoder_hid_dim": None}, "encoder_hid_dim_type is 'text_proj' with encoder_hid_dim None"),
        ({"encoder_hid_dim_type": "image_proj"}, "encoder_hid_dim_type is 'image_proj' with encoder_hid_dim 12"),
    ):
        folder = save_blog(tmp_path, "emb_net.pth")
        config(**change)(folder)
        with pytest.raises(ValueError, match=f"config.json: {message}"):
            load_diffusers(folder)


def test_what_is_wrong_with_a_label_mlp_names_its_file(tmp_path: Path) -> None:
    folder = save_blog(tmp_path, "emb_net.pth")
    weights = torch.load(tmp_path / "emb_net.pth", weights_only=True)
    for change, message in (
        ({"2.bias": torch.ones(11)}, r"2\.bias is \[11\]; the weight beside it says \[12\]"),
        ({"0.bias": torch.ones(1, 10)}, r"0\.bias is \[1, 10\]; the weight beside it says \[10\]"),
        ({"0.bias": torch.full((10,), torch.nan)}, r"0\.bias holds numbers that are not finite"),
        ({"0.weight": torch.ones(10, 5, dtype=torch.int64)}, r"0\.weight is torch\.int64, no weights"),
        ({"0.weight": torch.ones(10, 0)}, r"weights of shapes \[10, 0\] and \[12, 10\] are of no labels or no numbers"),
        ({"\x1b[2J": torch.ones(1)}, r"holds \\x1b\[2J, 0\.bias, .*; two Linears"),
    ):
        torch.save({**weights, **change}, tmp_path / "emb_net.pth")
        with pytest.raises(ValueError, match=rf"{tmp_path}/emb_net\.pth:? {message}") as caught:
            load_diffusers(folder)
        assert str(caught.value).isprintable() and "unet" not in str(caught.value).replace(str(tmp_path), "")


def test_files_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_blog(tmp_path, "emb_net.pth")
    flags = ("--run", folder, "--label", "0", "--out", tmp_path / "out", "--label-mlp")
    code = sample_here(*flags, tmp_path / "nope.pth")
    assert_one_line(code, capsys, f"there is no file {tmp_path / 'nope.pth'} to read a label MLP of; name one: --label-mlp FILE")
    assert_one_line(sample_here(*flags, tmp_path), capsys, f"{tmp_path} is a folder; name the label MLP's file: --label-mlp FILE")
    (folder / CONFIG).unlink()
    (folder / CONFIG).mkdir()
    code = sample_here(*flags[:-1])
    assert_one_line(code, capsys, f"{folder / CONFIG} is a folder; a model's config.json is a file")
    with pytest.raises(ValueError, match=r"config\.json is a folder; a model's config\.json is a file"):
        load_diffusers(folder)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_file_in_a_folder_s_place(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    condition_network().save_pretrained(tmp_path)
    code = sample_here("--run", tmp_path / name, "--label", "0")
    assert_one_line(code, capsys, f"{name} is a file; name the folder with config.json and weights, such as {tmp_path}")
    (tmp_path / "adm.pt").write_bytes(b"")
    code = sample_here("--run", tmp_path / "adm.pt", "--label", "0")
    assert_one_line(code, capsys, "is converted first: python -m fastcond.convert")
