"""Configurations: what they refuse, the round trip through JSON, presets."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from fastcond.config import DataConfig, DiffusionConfig, RunConfig, TrainingConfig, UNetConfig, from_dict, to_dict
from fastcond.presets import PRESETS, choose_preset


def run_config(preset: str = "tiny", **training: Any) -> RunConfig:
    chosen = PRESETS[preset]
    return RunConfig(
        network=UNetConfig(image_size=(64, 64), num_classes=5, **chosen.network),
        diffusion=DiffusionConfig(schedule="cosine", zero_terminal_snr=True, prediction="v"),
        training=TrainingConfig(**{**chosen.training, **training}),
        data=DataConfig(source="cats.npy", labels="labels.npy", size=(64, 64)),
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_survives_json(preset: str) -> None:
    config = run_config(preset)
    assert from_dict(RunConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_budget_in_minutes_and_absent_options_survive_json() -> None:
    config = dataclasses.replace(run_config(steps=None, minutes=2.5), data=DataConfig(source="sprites"))
    assert from_dict(RunConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_whole_numbers_may_stand_for_floats() -> None:
    assert from_dict(TrainingConfig, {"minutes": 3}).minutes == 3


def test_keys_with_defaults_may_be_absent() -> None:
    assert from_dict(UNetConfig, {"image_size": [16, 16], "num_classes": 2}) == UNetConfig((16, 16), 2)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("network", "colour"), 1, "unknown key 'colour' in network"),
        (("extra",), {}, "unknown key 'extra' in RunConfig"),
        (("network", "num_classes"), None, "num_classes in network is None"),
        (("network", "num_classes"), "five", "num_classes in network is 'five'"),
        (("network", "num_classes"), 5.0, "num_classes in network is 5.0"),
        (("network", "num_classes"), True, "num_classes in network is True"),
        (("network", "image_size"), 64, "image_size in network is 64"),
        (("network", "image_size"), [64], r"image_size in network is \(64,\)"),
        (("network", "image_size"), [64, "64"], r"image_size in network is \(64, '64'\)"),
        (("network", "block_out_channels"), ["32"], "block_out_channels in network"),
        (("network", "class_embedding_mlp"), "no", "class_embedding_mlp in network is 'no'"),
        (("network", "conditioning"), 3, "conditioning in network is 3"),
        (("network", "conditioning"), "film", "conditioning is 'film'; choose one of adagn, scale_shift, bias"),
        (("diffusion", "num_timesteps"), "1000", "num_timesteps in diffusion is '1000'"),
        (("training", "learning_rate"), "fast", "learning_rate in training is 'fast'"),
        (("training", "steps"), 10.5, "steps in training is 10.5"),
        (("data", "size"), "64x64", "size in data is '64x64'"),
        (("data", "source"), 7, "source in data is 7"),
        (("data",), "sprites", "data is not an object of named values"),
    ],
)
def test_a_file_of_another_version_is_refused(path: tuple[str, ...], value: Any, message: str) -> None:
    values = to_dict(run_config())
    inner = values
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(ValueError, match=message):
        from_dict(RunConfig, values)


@pytest.mark.parametrize("path", [("network",), ("network", "image_size"), ("data", "source")])
def test_a_missing_key_is_named(path: tuple[str, ...]) -> None:
    values = to_dict(run_config())
    inner = values
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    with pytest.raises(ValueError, match=f"key '{path[-1]}' is missing in"):
        from_dict(RunConfig, values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": (15, 16)}, r"image size 15x16 .* multiples of 2; use --size 16x16"),
        ({"image_size": (16, 17)}, r"image size 16x17 .* use --size 16x18"),
        ({"image_size": (0, 16)}, r"image size 0x16 .* use --size 2x16"),
        ({"block_out_channels": ()}, "block_out_channels is empty"),
        ({"num_classes": 0}, "num_classes is 0; it must be at least 1"),
        ({"num_classes": 2**31}, "num_classes is 2147483648; it must be at most 2147483647"),
        ({"block_out_channels": (64, -128)}, "block_out_channels is -128; it must be at least 1"),
        ({"block_out_channels": (64, 2**25)}, "block_out_channels is 33554432; it must be at most 16777216"),
        ({"time_embedding_dim": 0}, "time_embedding_dim is 0; it must be at least 1"),
        ({"norm_eps": 0.0}, r"norm_eps is 0.0; it must be positive and finite"),
        ({"norm_eps": float("inf")}, "norm_eps is inf"),
        ({"freq_shift": 32.0}, r"freq_shift is 32.0 for 64 channels; it must be finite and less than half of them"),
        ({"freq_shift": float("-inf")}, "freq_shift is -inf for 64 channels"),
        ({"label_dropout": 1.0}, r"label_dropout is 1.0; it must lie in \[0, 1\)"),
        ({"label_attention_heads": 0}, "label_attention_heads is 0"),
        ({"in_channels": 0}, "in_channels is 0"),
        ({"out_channels": 0}, "out_channels is 0"),
        ({"layers_per_block": 0}, "layers_per_block is 0"),
        ({"attention_head_dim": 0}, "attention_head_dim is 0"),
        ({"norm_num_groups": 0}, "norm_num_groups is 0"),
        ({"norm_num_groups": 24}, "64 channels cannot be divided into 24 groups"),
        ({"attention_head_dim": 48}, "128 channels cannot be divided into heads of 48"),
        ({"conditioning": "film"}, "conditioning is 'film'"),
        ({"resample": "pool"}, "resample is 'pool'; choose one of conv, resnet"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": -0.1}, "dropout is -0.1"),
    ],
)
def test_networks_that_cannot_be_built_are_refused(changes: dict[str, Any], message: str) -> None:
    options = {"image_size": (16, 16), "num_classes": 5, "attention_resolutions": (8,), **changes}
    with pytest.raises(ValueError, match=message):
        UNetConfig(**options)


def test_heads_of_the_middle_block_must_fit_too() -> None:
    """The middle has attention whatever attention_resolutions says."""
    with pytest.raises(ValueError, match="128 channels cannot be divided into heads of 48"):
        UNetConfig((16, 16), 5, attention_resolutions=(), attention_head_dim=48)


def test_geometry_of_a_network() -> None:
    config = UNetConfig((32, 16), 5, block_out_channels=(32, 64, 96), attention_resolutions=(16,))
    assert config.null_label == 5 and config.embedding_dim == 128
    assert [config.level_size(level) for level in range(3)] == [(32, 16), (16, 8), (8, 4)]
    assert [config.attends("down", level) for level in range(3)] == [False, True, False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "sigmoid"}, "schedule is 'sigmoid'; choose one of linear, cosine"),
        ({"prediction": "score"}, "prediction is 'score'"),
        ({"num_timesteps": 0}, "num_timesteps is 0"),
        ({"zero_terminal_snr": True}, "use prediction v or x_0"),
    ],
)
def test_processes_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusionConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": None}, "give either steps or minutes"),
        ({"minutes": 1.0}, "give either steps or minutes"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": None, "minutes": 0.0}, "minutes is 0.0"),
        ({"weighting": "p2"}, "weighting is 'p2'"),
        ({"lr_schedule": "linear"}, "lr_schedule is 'linear'"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
        ({"batch_size": 0}, "batch size is 0"),
        ({"accumulation": 0}, "into 0 equal micro-batches"),
        ({"batch_size": 10, "accumulation": 3}, "batch size 10 cannot be split into 3"),
        ({"learning_rate": 0.0}, "learning rate is 0.0"),
        ({"clip_grad_norm": 0.0}, "gradient clipping norm is 0.0"),
        ({"min_snr_gamma": 0.0}, "min-SNR gamma is 0.0"),
        ({"warmup_steps": -1}, "warm-up is -1 steps"),
        ({"weight_decay": -0.1}, "weight decay is -0.1"),
        ({"label_dropout": 1.1}, "label dropout is 1.1"),
        ({"ema_decay": 1.0}, "EMA decay is 1.0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32}, "seed is 4294967296"),
    ],
)
def test_training_that_cannot_run_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**{"steps": 10, **changes})


@pytest.mark.parametrize(
    ("image_size", "device", "preset"),
    [
        ((16, 16), "cpu", "tiny"),
        ((64, 64), "cpu", "tiny"),
        ((16, 16), "cuda", "sprites"),
        ((32, 32), "cuda", "cifar10"),
        ((28, 28), "cuda", "sprites"),
        ((64, 64), "cuda", "imagenet64"),
    ],
)
def test_auto_chooses_by_size_and_device(image_size: tuple[int, int], device: str, preset: str) -> None:
    assert choose_preset(image_size, device) == preset
    UNetConfig(image_size=image_size, num_classes=5, **PRESETS[preset].network)
