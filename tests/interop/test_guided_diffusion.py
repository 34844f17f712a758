"""guided-diffusion's checkpoints as a ConditionalUNet, against a statement of that network from its formulas."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcond import convert
from fastcond.command_line import run as run_command
from fastcond.diffusion import NoiseSchedule
from fastcond.engine.frozen_unet import FrozenUNet
from fastcond.interop.guided_diffusion import load_guided_diffusion
from tests.support.adm_network import Adm, evaluate, random_weights
from tests.support.command_lines import assert_one_line, sample_here
from tests.tolerances import FP32_CUMPROD, assert_network_close

NETWORKS = {
    "adm": Adm(),
    "new order": Adm(new_order=True),
    "no classes": Adm(classes=None),
    "convolutions resample": Adm(resblock_updown=False),
    "added embedding": Adm(scale_shift=False, new_order=True),
    "fixed variance": Adm(learn_sigma=False, classes=None, resblock_updown=False, scale_shift=False),
    "three levels, two of them attending": Adm(multipliers=(1, 2, 3), layers=2, attention=(1, 2), head_dim=32),
    "attention at the finest level": Adm(attention=(0,), multipliers=(1, 1), layers=2, new_order=True),
    "three levels by convolutions": Adm(multipliers=(1, 2, 2), attention=(2,), resblock_updown=False),
    "attention in the middle alone": Adm(attention=(), multipliers=(1, 2, 2), head_dim=8),
    "one level": Adm(multipliers=(1,), attention=(0,), layers=3),
    "consistency models": Adm(four_dims=True, new_order=True),
}
SIZE = (8, 8)


def save(folder: Path, weights: dict[str, Any]) -> Path:
    path = folder / "ema_0.9999_000100.pt"
    torch.save(weights, path)
    return path


def order(adm: Adm) -> Any:
    return "new" if adm.new_order else "legacy"


def inputs(adm: Adm) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    return x, torch.tensor([731, 731]), torch.tensor([0, 0] if adm.classes is None else [3, 1])


def expected(adm: Adm, weights: dict[str, Tensor]) -> Tensor:
    x, timestep, label = inputs(adm)
    wide = {name: value.double() for name, value in weights.items()}
    return evaluate(adm, wide, x.double(), timestep, None if adm.classes is None else label)


@pytest.mark.parametrize("name", NETWORKS)
def test_output(name: str, tmp_path: Path) -> None:
    adm = NETWORKS[name]
    weights = random_weights(adm)
    settings = {"qkv_order": order(adm), "head_dim": adm.head_dim, "image_size": SIZE}
    if adm.four_dims:  # of consistency_models, which have no schedule
        settings["schedule"] = "linear"
    model = load_guided_diffusion(save(tmp_path, weights), **settings)
    x, timestep, label = inputs(adm)
    wanted = expected(adm, weights)
    with torch.no_grad():
        assert_network_close(model(x, timestep, label), wanted)
        assert_network_close(FrozenUNet(model)(x, 731, label), wanted)
    assert model.config.block_out_channels == tuple(adm.channels) and model.config.layers_per_block == adm.layers
    assert not model.config.has_null_label
    assert model.diffusion.scheduler is not None
    assert model.diffusion.scheduler["variance_type"] == ("learned_range" if adm.learn_sigma else "fixed_large")


def test_the_other_order_is_another_network(tmp_path: Path) -> None:
    adm = NETWORKS["adm"]
    weights = random_weights(adm)
    path = save(tmp_path, weights)
    x, timestep, label = inputs(adm)
    wrong = load_guided_diffusion(path, qkv_order="new", head_dim=adm.head_dim, image_size=SIZE)
    with torch.no_grad(), pytest.raises(AssertionError, match="error"):
        assert_network_close(wrong(x, timestep, label), expected(adm, weights))


def test_the_order_is_asked_for_only_where_it_matters(tmp_path: Path) -> None:
    weights = random_weights(NETWORKS["adm"])
    with pytest.raises(ValueError, match=r"may be in either order.*--qkv-order"):
        load_guided_diffusion(save(tmp_path, weights), head_dim=16, image_size=SIZE)
    # One head: there is but one order. Four dimensions: consistency_models.
    one_head = load_guided_diffusion(save(tmp_path, weights), head_dim=64, image_size=SIZE)
    assert torch.equal(one_head.mid_block.attentions[0].to_k.weight, weights["middle_block.1.qkv.weight"][64:128, :, 0])
    theirs = random_weights(NETWORKS["consistency models"])
    told = load_guided_diffusion(save(tmp_path, theirs), qkv_order="new", head_dim=16, image_size=SIZE, schedule="linear")
    untold = load_guided_diffusion(save(tmp_path, theirs), head_dim=16, image_size=SIZE, schedule="linear")
    assert all(torch.equal(told.state_dict()[name], value) for name, value in untold.state_dict().items())


def test_the_schedule_is_adms(tmp_path: Path) -> None:
    path = save(tmp_path, random_weights(NETWORKS["new order"]))

    def alphas(**settings: Any) -> Tensor:
        model = load_guided_diffusion(path, qkv_order="new", head_dim=16, **settings)
        return NoiseSchedule.from_config(model.diffusion).alphas_cumprod

    def close(found: Tensor, wanted: NoiseSchedule) -> None:
        torch.testing.assert_close(found, wanted.alphas_cumprod, **FP32_CUMPROD)

    close(alphas(), NoiseSchedule.cosine(1000))
    close(alphas(image_size=(128, 128)), NoiseSchedule.linear(1000))
    close(alphas(schedule="linear", num_timesteps=500), NoiseSchedule.linear(500))


def test_a_consistency_model_has_no_schedule_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path, random_weights(NETWORKS["consistency models"]))
    flags = ("--qkv-order", "new", "--head-dim", "16", "--size", "8")
    assert_one_line(
        convert_here(path, tmp_path / "out", *flags), capsys, "stored as consistency_models does", "--schedule linear"
    )
    assert not (tmp_path / "out").exists()
    assert convert_here(path, tmp_path / "out", *flags, "--schedule", "linear", "--timesteps", "40") == 0
    scheduler = json.loads((tmp_path / "out" / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["num_train_timesteps"] == 40 and scheduler["beta_schedule"] == "linear"


def test_half_precision_files_are_widened(tmp_path: Path) -> None:
    weights = {name: value.half() for name, value in random_weights(NETWORKS["new order"]).items()}
    model = load_guided_diffusion(save(tmp_path, weights), qkv_order="new", head_dim=16, image_size=SIZE)
    assert torch.equal(model.conv_in.weight, weights["input_blocks.0.0.weight"].float())


def convert_here(*arguments: object) -> int:
    return run_command(convert.main, convert.build_parser(), [str(argument) for argument in arguments])


@pytest.mark.parametrize("name", ["adm", "added embedding", "fixed variance", "three levels, two of them attending"])
def test_converted_it_is_the_same_in_diffusers(name: str, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    adm = NETWORKS[name]
    weights = random_weights(adm)
    flags = ("--qkv-order", order(adm), "--head-dim", adm.head_dim, "--size", "8")
    assert convert_here(save(tmp_path, weights), tmp_path / "out", *flags) == 0
    network = diffusers.UNet2DModel.from_pretrained(tmp_path / "out" / "unet")
    x, timestep, label = inputs(adm)
    labels = {} if adm.classes is None else {"class_labels": label}
    with torch.no_grad():
        assert_network_close(network(x, timestep, **labels).sample, expected(adm, weights))
    scheduler = json.loads((tmp_path / "out" / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["beta_schedule"] == "linear" and "variance_type" in scheduler
    flags = ("--label", "0", "--n", "1", "--steps", "2", "--out", tmp_path / "drawn")
    assert sample_here("--run", tmp_path / "out", *flags) == 0, "with the learned variance too"


class Malicious:
    """What would run a command if it were unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/fastcond-was-here",)


def changed(**changes: Any) -> dict[str, Any]:
    """A checkpoint with tensors replaced (dots as two underscores), or taken out where None."""
    weights = random_weights(NETWORKS["new order"])
    for name, value in changes.items():
        weights.pop(name.replace("__", "."), None)
        if value is not None:
            weights[name.replace("__", ".")] = value
    return weights


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "has no input_blocks.0.0.weight"),
    "another network": ({"conv.weight": torch.ones(3, 3)}, "has no input_blocks.0.0.weight"),
    "no tensor": ({"step": 3}, "not a dictionary of tensors"),
    "a missing end": (changed(out__2__weight=None), "has no out.2.weight"),
    "a missing layer": (changed(middle_block__0__out_layers__3__bias=None), "1 missing (mid_block.resnets.0.conv2.bias)"),
    "an extra layer": (changed(encoder__weight=torch.ones(2, 2)), "1 unknown (encoder.weight)"),
    "a block too many": (changed(input_blocks__9__0__op__weight=torch.ones(1)), "input_blocks 4 is missing"),
    "other shapes": (
        changed(middle_block__0__in_layers__2__weight=torch.ones(64, 64, 1, 1)),
        "mid_block.resnets.0.conv1.weight is",
    ),
    "a scalar": (changed(out__2__weight=torch.tensor(1.0)), "4 dimensions are needed"),
    "a scalar for attention": (changed(middle_block__1__qkv__weight=torch.tensor(1.0)), "heads of 16"),
    "an empty tensor": (changed(out__2__weight=torch.ones(0, 3, 3, 3)), "none of them 0"),
    "integers": (changed(out__0__weight=torch.ones(32, dtype=torch.int64)), "no weights"),
    "a wide timestep": (changed(time_embed__0__weight=torch.ones(128, 64)), "64 waves"),
    "half a projection": (changed(input_blocks__1__0__emb_layers__1__weight=torch.ones(33, 128)), "33 rows for 32 channels"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, message = WRONG[name]
    path = save(tmp_path, weights)
    flags = ("--qkv-order", "new", "--head-dim", "16", "--size", "8")
    assert_one_line(convert_here(path, tmp_path / "out", *flags), capsys, str(path), message)
    assert not (tmp_path / "out").exists()


def test_a_damaged_or_malicious_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = io.BytesIO()
    torch.save(random_weights(NETWORKS["new order"]), whole)
    content = whole.getvalue()
    files = {"truncated": content[: len(content) // 2], "empty": b"", "text": b"hello", "header": content[:100]}
    files["malicious"] = pickle.dumps({"out.2.weight": Malicious()}, protocol=2)
    zipped = io.BytesIO()
    torch.save({"out.2.weight": Malicious()}, zipped)
    files["malicious zip"] = zipped.getvalue()
    for name, bytes_ in files.items():
        path = tmp_path / f"{name}.pt"
        path.write_bytes(bytes_)
        assert_one_line(convert_here(path, tmp_path / "out"), capsys, str(path), "no whole file of weights")
    assert not Path("/tmp/fastcond-was-here").exists() and not (tmp_path / "out").exists()


def test_a_file_altered_anywhere_is_refused_or_read(tmp_path: Path) -> None:
    """Whatever the readers raise, it is one error that names the file; altered numbers may pass for numbers."""
    weights, contents = random_weights(Adm(multipliers=(1,), attention=())), []
    for as_zip in (True, False):
        buffer = io.BytesIO()
        torch.save(weights, buffer, _use_new_zipfile_serialization=as_zip)
        contents.append(buffer.getvalue())
    draw, path, refused = random.Random(0), tmp_path / "altered.pt", 0
    for i in range(80):
        content = bytearray(contents[i % 2])
        if i % 4 < 2:
            content = content[: draw.randrange(len(content))]
        else:
            for _ in range(3):
                content[draw.choice((1, -1)) * draw.randrange(1, 3000)] = draw.randrange(256)
        path.write_bytes(content)
        try:
            load_guided_diffusion(path, qkv_order="new", image_size=SIZE, head_dim=16)
        except ValueError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused >= 40


def test_flags_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = save(tmp_path, random_weights(NETWORKS["adm"])), tmp_path / "out"
    for flags, message in [
        (("--head-dim", "16"), "either order"),
        (("--head-dim", "48"), "heads of 48"),
        (("--head-dim", "16", "--qkv-order", "new", "--size", "7"), "multiples of 2"),
        (("--checkpoint", "3"), "--checkpoint is of a run"),
    ]:
        assert_one_line(convert_here(path, out, *flags), capsys, message)
    (tmp_path / "folder").mkdir()
    assert_one_line(convert_here(tmp_path / "folder", out, "--head-dim", "16"), capsys, "--head-dim is for a checkpoint file")
    with pytest.raises(ValueError, match="qkv_order is 'other'"):
        load_guided_diffusion(path, qkv_order="other")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="is not a file"):
        load_guided_diffusion(tmp_path / "nowhere.pt")
