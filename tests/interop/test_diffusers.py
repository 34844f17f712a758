"""Folders of diffusers in and out: every kind of file, the same bytes back, and nothing of a file is run."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from fastcond.engine import generate
from fastcond.interop.diffusers import class_names_of, load_diffusers, save_diffusers
from fastcond.interop.opening import is_diffusers_folder
from fastcond.nn import ConditionalUNet
from tests.support.foreign import condition_network, label_mlp, plain_network
from tests.support.networks import small_unet
from tests.tolerances import assert_network_close

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")


def theirs(kind: str = "UNet2DModel") -> Any:
    return plain_network() if kind == "UNet2DModel" else condition_network()


def assert_same_output(model: ConditionalUNet, network: Any, token: Any = None) -> None:
    x_t, timestep, label = torch.randn(2, 3, 8, 8), torch.tensor([412, 412]), torch.tensor([0, 3])
    with torch.no_grad():
        told = {"class_labels": label} if token is None else {"encoder_hidden_states": token(label)}
        assert_network_close(model(x_t, timestep, label), network(x_t, timestep, **told).sample.double())


def test_a_model_s_folder(tmp_path: Path) -> None:
    network = theirs()
    network.save_pretrained(tmp_path)
    assert is_diffusers_folder(tmp_path) and not is_diffusers_folder(tmp_path / "nowhere")
    model = load_diffusers(tmp_path)
    assert_same_output(model, network)
    assert not model.training and not model.config.has_null_label and model.config.num_classes == 4


@pytest.mark.parametrize(
    "how",
    [
        {"max_shard_size": "20KB"},
        {"safe_serialization": False},
        {"variant": "fp16"},
        {"safe_serialization": False, "max_shard_size": "20KB"},
    ],
    ids=str,
)
def test_other_kinds_of_files(tmp_path: Path, how: dict[str, Any]) -> None:
    """Shards, PyTorch's own format, and a variant that is the only file there."""
    network = theirs()
    network.save_pretrained(tmp_path, **how)
    if "max_shard_size" in how:
        assert len(list(tmp_path.glob("*-of-*"))) > 1
    assert_same_output(load_diffusers(tmp_path), network)
    if "variant" in how:
        assert_same_output(load_diffusers(tmp_path, variant="fp16"), network)
        with pytest.raises(FileNotFoundError, match=r"holds no diffusion_pytorch_model.bf16.safetensors; there are diffusion"):
            load_diffusers(tmp_path, variant="bf16")


def test_half_precision_weights_are_computed_in_float32(tmp_path: Path) -> None:
    network = theirs().half()
    network.save_pretrained(tmp_path)
    model = load_diffusers(tmp_path)
    assert model.dtype == torch.float32
    assert_same_output(model, network.float())


def test_names_of_old(tmp_path: Path) -> None:
    network = theirs()
    network.save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = safetensors.torch.load_file(path)
    renamed = {}
    for name, value in weights.items():
        for today, then in old.items():
            name = name.replace(f".{today}.", f".{then}.") if "attentions" in name else name
        renamed[name] = value
    assert renamed.keys() != weights.keys()
    safetensors.torch.save_file(renamed, path)
    assert_same_output(load_diffusers(tmp_path), network)


def test_a_pipeline_s_folder_brings_its_scheduler(tmp_path: Path) -> None:
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=200, beta_schedule="scaled_linear", prediction_type="v_prediction")
    network = theirs()
    diffusers.DDIMPipeline(network, scheduler).save_pretrained(tmp_path)
    (tmp_path / "class_labels.json").write_text('{"label2id": {"a": 0, "c": 2, "b": 1}, "null_class_id": 3}')
    model = load_diffusers(tmp_path)
    assert_same_output(model, network)
    assert (model.diffusion.num_timesteps, model.diffusion.prediction) == (200, "v")
    assert model.config.has_null_label and model.config.num_classes == 3 == model.config.null_label
    assert class_names_of(tmp_path, 3) == ("a", "b", "c")
    assert generate(model, [0, 1], guidance=2.0, steps=3, sampler="scheduler").shape == (2, 8, 8, 3)


@pytest.mark.parametrize("name", ["emb_net.pth", "emb_net.safetensors", "elsewhere.pt"])
def test_the_blog_s_two_files(tmp_path: Path, name: str) -> None:
    network, mlp = theirs("UNet2DConditionModel"), label_mlp(nn.Linear(5, 10), nn.Dropout(0.1), nn.GELU(), nn.Linear(10, 12))
    network.save_pretrained(tmp_path / "conditional_unet.pth")
    if name.endswith("safetensors"):
        safetensors.torch.save_file(mlp.state_dict(), tmp_path / name)
    else:
        torch.save(mlp.state_dict(), tmp_path / name)
    given = {"label_mlp": tmp_path / name} if name.startswith("elsewhere") else {}
    model = load_diffusers(tmp_path / "conditional_unet.pth", **given)
    assert model.config.num_classes == 5 and model.config.label_hidden_dim == 10
    assert_same_output(model, network, lambda label: mlp(nn.functional.one_hot(label, 5).float())[:, None])


def test_the_blog_s_network_without_its_mlp(tmp_path: Path) -> None:
    theirs("UNet2DConditionModel").save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="which is told a token; no emb_net"):
        load_diffusers(tmp_path)
    torch.save({"0.weight": torch.ones(3, 5)}, tmp_path / "emb_net.pth")
    with pytest.raises(ValueError, match="two Linears of a Sequential are needed"):
        load_diffusers(tmp_path)
    torch.save(label_mlp(nn.Linear(5, 10), nn.GELU(), nn.Linear(10, 11)).state_dict(), tmp_path / "emb_net.pth")
    with pytest.raises(ValueError, match=r"emb_net.pth makes tokens of 11 numbers; .*config.json says 12"):
        load_diffusers(tmp_path)


@pytest.mark.parametrize("kind", ["UNet2DModel", "UNet2DConditionModel"])
def test_a_round_trip_gives_the_same_bytes_and_a_pipeline_that_works(tmp_path: Path, kind: str) -> None:
    network = theirs(kind)
    source, target = tmp_path / "source", tmp_path / "target"
    diffusers.DDPMPipeline(network, diffusers.DDPMScheduler(num_train_timesteps=100)).save_pretrained(source)
    if kind == "UNet2DConditionModel":
        torch.save(label_mlp().state_dict(), source / "unet" / "emb_net.pth")
    model = load_diffusers(source)
    save_diffusers(model, target)
    for file in ("unet/diffusion_pytorch_model.safetensors",):
        before, after = (safetensors.torch.load_file(folder / file) for folder in (source, target))
        assert before.keys() == after.keys() and all(
            before[name].numpy().tobytes() == after[name].numpy().tobytes() for name in before
        )
    back = getattr(diffusers, kind).from_pretrained(target / "unet")
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in back.state_dict().items())
    pipeline = diffusers.DDPMPipeline.from_pretrained(target)
    assert pipeline.scheduler.config.num_train_timesteps == 100
    again = load_diffusers(target)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
    assert again.config == model.config


@pytest.mark.parametrize("conditioning", ["bias", "scale_shift"])
def test_our_own_model_in_diffusers(tmp_path: Path, conditioning: str) -> None:
    model = small_unet(conditioning=conditioning).eval()
    save_diffusers(model, tmp_path, class_names=["x", "y", "z"])
    assert class_names_of(tmp_path, 3) == ("x", "y", "z")
    assert_same_output(model, diffusers.UNet2DModel.from_pretrained(tmp_path / "unet"))
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    assert type(pipeline).__name__ == "DDPMPipeline" and type(pipeline.scheduler).__name__ == "DDPMScheduler"
    again = load_diffusers(tmp_path)
    assert again.config.has_null_label and again.config.num_classes == 3
    assert_same_output(again, diffusers.UNet2DModel.from_pretrained(tmp_path / "unet"))


def test_what_cannot_be_saved_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="conditioning 'adagn' cannot be expressed"):
        save_diffusers(small_unet(), tmp_path / "new")
    with pytest.raises(ValueError, match="there are 2 class names for 3 classes"):
        save_diffusers(small_unet(conditioning="bias"), tmp_path / "new", class_names=["a", "b"])
    assert not (tmp_path / "new").exists()
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="already exists and is not empty"):
        save_diffusers(small_unet(conditioning="bias"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def damaged(folder: Path, what: str) -> None:
    """Spoil a saved model."""
    safe, config = folder / "diffusion_pytorch_model.safetensors", folder / "config.json"
    weights = safetensors.torch.load_file(safe)
    if what == "truncated":
        safe.write_bytes(safe.read_bytes()[:-100])
    elif what == "not safetensors":
        safe.write_bytes(b"\xff" * 1000)
    elif what == "missing weight":
        safetensors.torch.save_file({name: value for name, value in weights.items() if name != "conv_in.bias"}, safe)
    elif what == "unknown weight":
        safetensors.torch.save_file({**weights, "extra.weight": torch.ones(2)}, safe)
    elif what == "wrong shape":
        safetensors.torch.save_file({**weights, "conv_in.bias": torch.ones(3)}, safe)
    elif what == "integers":
        safetensors.torch.save_file({**weights, "conv_in.bias": torch.ones(16, dtype=torch.int32)}, safe)
    elif what == "not a number":
        safetensors.torch.save_file({**weights, "conv_in.bias": torch.full((16,), torch.nan)}, safe)
    elif what == "an empty config":
        config.write_text("{}")
    elif what in ("half a config", "a short config"):
        absent = "block_out_channels" if what == "half a config" else "layers_per_block"
        kept = {key: value for key, value in json.loads(config.read_text()).items() if key != absent}
        config.write_text(json.dumps(kept))
    elif what == "text":
        safe.unlink()
        (folder / "diffusion_pytorch_model.bin").write_text("hello")
    elif what == "a run":
        (folder / "checkpoints").mkdir()
    elif what == "a list for an index":
        (folder / "model_index.json").write_text("[]")
    elif what == "no scheduler":
        (folder / "model_index.json").write_text(json.dumps({"scheduler": ["diffusers", "DDPMScheduler"]}))
    elif what == "no config":
        config.unlink()
    elif what == "broken config":
        config.write_text("{")
    elif what == "a list for a config":
        config.write_text("[]")
    elif what == "another class":
        config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": "AutoencoderKL"}))
    elif what == "wrong type in config":
        config.write_text(json.dumps({**json.loads(config.read_text()), "block_out_channels": "many"}))
    elif what == "no weights":
        safe.unlink()
    elif what == "code":
        safe.unlink()
        (folder / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Evil(folder / "ran")))
    elif what == "code in a zip":
        safe.unlink()
        torch.save({"conv_in.weight": Evil(folder / "ran")}, folder / "diffusion_pytorch_model.bin")
    elif what == "a shard elsewhere":
        safe.unlink()
        index = {"weight_map": {"conv_in.weight": "../../etc/passwd"}}
        (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    elif what == "a missing shard":
        safe.unlink()
        index = {"weight_map": {"conv_in.weight": "shard-00001.safetensors"}}
        (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("truncated", "is no whole file of weights"),
        ("not safetensors", "is no whole file of weights"),
        ("missing weight", r"of the weights are 1 missing \(conv_in.bias\)"),
        ("unknown weight", r"of the weights are 1 unknown \(extra.weight\)"),
        ("wrong shape", r"conv_in.bias is \[3\]; its config says \[16\]"),
        ("integers", "conv_in.bias is torch.int32, no weights"),
        ("not a number", "conv_in.bias holds numbers that are not finite"),
        ("an empty config", "config.json has no _class_name"),
        ("half a config", r"levels; its config.json does not say block_out_channels: diffusers' defaults were taken"),
        ("a short config", r"missing .*; its config.json does not say layers_per_block: diffusers' defaults were taken"),
        ("text", "diffusion_pytorch_model.bin is no whole file of weights, or holds more than weights: it cannot be read as one"),
        ("a run", "is a run of fastcond; load it with fastcond.load_run"),
        ("a list for an index", "model_index.json holds list, not an object"),
        ("no scheduler", "scheduler/scheduler_config.json is missing"),
        ("no config", "config.json is missing"),
        ("broken config", "is not valid JSON"),
        ("a list for a config", "holds list, not an object"),
        ("another class", "_class_name is 'AutoencoderKL'"),
        ("wrong type in config", "config.json: .*block_out_channels"),
        ("no weights", "holds no diffusion_pytorch_model.safetensors"),
        ("code", "holds more than weights: it is a pickle of something else; nothing of it was run; save the weights as"),
        ("code in a zip", r"holds more than weights: it names posix.mkdir, code that would run; nothing of it was run"),
        ("a shard elsewhere", "names '../../etc/passwd', which is not a file beside it"),
        ("a missing shard", "shard-00001.safetensors is missing"),
    ],
)
def test_damaged_folders_are_refused_in_one_line(tmp_path: Path, what: str, message: str) -> None:
    theirs().save_pretrained(tmp_path)
    damaged(tmp_path, what)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load_diffusers(tmp_path)
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()
    assert "weights_only" not in str(caught.value), "PyTorch's advice would run it"
