"""config.json of diffusers' `UNet2DModel` and our `UNetConfig`: the same network in two vocabularies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastcond.config import DOWN_BLOCK_TYPES, UP_BLOCK_TYPES, UNetConfig, from_dict
from fastcond.messages import shown

CLASS = "UNet2DModel"
_DEFAULTS: Mapping[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
_CONDITIONING = {"default": "bias", "scale_shift": "scale_shift"}
_DOWN, _UP = (tuple(name for name in names if "CrossAttn" not in name) for names in (DOWN_BLOCK_TYPES, UP_BLOCK_TYPES))
_SIZE_OF_NONE = 32  # a network that names no size is one for any; a sample then has this one


def unet_config(
    config: Mapping[str, Any], *, has_null_label: bool = False, image_size: tuple[int, int] | None = None
) -> UNetConfig:
    """Our words for a `UNet2DModel`'s config.json, as a dictionary.

    Args:
        config: keys that it lacks take the class's defaults, as of diffusers 0.42; keys that start with an underscore, and
            those that the class does not know, are ignored.
        has_null_label: whether the last row of its class-embedding table stands for "no condition", for which diffusers has
            no field.
        image_size: (H, W); None: its sample_size.
    Raises: ValueError naming the key whose value has no counterpart here, and the value.
    """
    found = {**_DEFAULTS, **{key: value for key, value in config.items() if key in _DEFAULTS}}
    class_name = config.get("_class_name", CLASS)
    if class_name != CLASS:
        raise ValueError(f"_class_name is {shown(class_name)}; a config of {CLASS} is needed")
    if found["act_fn"] not in ("silu", "swish"):
        raise _unsupported("act_fn", found["act_fn"], "silu")
    if found["resnet_time_scale_shift"] not in tuple(_CONDITIONING):  # a list in its place has no hash
        raise _unsupported("resnet_time_scale_shift", found["resnet_time_scale_shift"], "default or scale_shift")
    if found["mid_block_type"] not in (None, "UNetMidBlock2D"):
        raise _unsupported("mid_block_type", found["mid_block_type"], "UNetMidBlock2D or none")
    class_embedding, num_classes = _class_embedding(found, has_null_label)
    scale_shift = found["resnet_time_scale_shift"] == "scale_shift"
    mid_groups = found["attn_norm_num_groups"]
    if mid_groups == 0:
        raise _unsupported("attn_norm_num_groups", mid_groups, "a number of at least 1, or none")
    values = {
        **shared_settings(found, image_size),
        "num_classes": num_classes,
        "attention_head_dim": found["attention_head_dim"],
        "conditioning": _CONDITIONING[found["resnet_time_scale_shift"]],
        "resample": found["downsample_type"],
        "resample_up": found["upsample_type"],
        "down_block_types": down_types(found, _DOWN),
        "up_block_types": up_types(found, _UP),
        "mid_block": found["mid_block_type"] is not None,
        "mid_attention": found["add_attention"],
        # With scale_shift and no groups of its own, diffusers' middle attention has no norm at all.
        "mid_attention_norm_groups": 0 if scale_shift and mid_groups is None else mid_groups,
        "time_embedding": found["time_embedding_type"],
        "num_timesteps": found["num_train_timesteps"],
        "class_embedding": class_embedding,
        "has_null_label": has_null_label,
    }
    return from_dict(UNetConfig, values, "config.json")


def unet2d_config(config: UNetConfig) -> dict[str, Any]:
    """A `UNet2DModel`'s config.json for our network.

    Raises: ValueError saying why, for a network that diffusers cannot express.
    """
    if config.conditioning not in _CONDITIONING.values():
        raise ValueError(
            f"conditioning {config.conditioning!r} cannot be expressed in diffusers' {CLASS}; train with --conditioning bias, "
            "scale_shift or label-attention for a network that diffusers has"
        )
    if config.class_embedding_mlp:
        raise ValueError(f"diffusers' {CLASS} has no MLP behind its class-embedding table (class_embedding_mlp)")
    if config.mid_attention and config.conditioning == "bias" and config.mid_attention_norm_groups == 0:
        raise ValueError(f"diffusers' {CLASS} always has a norm in the middle attention of conditioning 'bias'")
    levels = range(len(config.block_out_channels))
    down = [_block_type(config, "down", level) for level in levels]
    up = [_block_type(config, "up", level) for level in reversed(levels)]
    mid_groups = config.mid_attention_norm_groups
    if config.conditioning == "scale_shift" and mid_groups is None:
        mid_groups = config.norm_groups(config.block_out_channels[-1])
    height, width = config.image_size
    table = config.class_embedding == "table"
    return {
        "_class_name": CLASS,
        "sample_size": height if height == width else [height, width],
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "center_input_sample": config.center_input,
        "time_embedding_type": config.time_embedding,
        "time_embedding_dim": config.time_embedding_dim,
        "freq_shift": config.freq_shift,
        "flip_sin_to_cos": config.flip_sin_to_cos,
        "down_block_types": down,
        "mid_block_type": "UNetMidBlock2D" if config.mid_block else None,
        "up_block_types": up,
        "block_out_channels": list(config.block_out_channels),
        "layers_per_block": config.layers_per_block,
        "mid_block_scale_factor": config.mid_block_scale_factor,
        "downsample_padding": config.downsample_padding,
        "downsample_type": config.resample,
        "upsample_type": config.resample_up or config.resample,
        "dropout": config.dropout,
        "act_fn": "silu",
        "attention_head_dim": config.attention_head_dim,
        "norm_num_groups": config.norm_num_groups,
        "attn_norm_num_groups": mid_groups or None,
        "norm_eps": config.norm_eps,
        "resnet_time_scale_shift": {value: key for key, value in _CONDITIONING.items()}[config.conditioning],
        "add_attention": config.mid_attention,
        "class_embed_type": config.class_embedding if config.class_embedding in ("timestep", "identity") else None,
        "num_class_embeds": config.largest_label + 1 if table else None,
        "num_train_timesteps": config.num_timesteps,
    }


def _class_embedding(found: Mapping[str, Any], has_null_label: bool) -> tuple[str, Any]:
    """The kind, and K."""
    kind, rows = found["class_embed_type"], found["num_class_embeds"]
    if kind not in (None, "timestep", "identity"):
        raise _unsupported("class_embed_type", kind, "timestep, identity or none")
    if has_null_label and (kind == "timestep" or (kind is None and rows is None)):
        raise ValueError("a null label is the last row of a class-embedding table, and there is no such table (num_class_embeds)")
    if kind is not None:
        return kind, 1
    if rows is None:
        return "none", 1
    if type(rows) is not int:
        raise _unsupported("num_class_embeds", rows, "a number")
    if has_null_label and rows < 2:
        raise ValueError(f"num_class_embeds is {shown(rows)}; a null label and at least one class need 2")
    return "table", rows - int(has_null_label)


def _image_size(found: Mapping[str, Any]) -> Any:
    size = found["sample_size"]
    if size is None:
        size = max(_SIZE_OF_NONE, 2 ** (len(found["down_block_types"]) - 1))
    return (size, size) if isinstance(size, int) else size


def shared_settings(found: Mapping[str, Any], image_size: tuple[int, int] | None) -> dict[str, Any]:
    """What diffusers' networks have in common, as fields of `UNetConfig`."""
    return {
        "image_size": image_size or _image_size(found),
        "in_channels": found["in_channels"],
        "out_channels": found["out_channels"],
        "block_out_channels": found["block_out_channels"],
        "layers_per_block": found["layers_per_block"],
        "attention_resolutions": (),
        "norm_num_groups": found["norm_num_groups"],
        "norm_eps": found["norm_eps"],
        "dropout": found["dropout"],
        "mid_block_scale_factor": found["mid_block_scale_factor"],
        "downsample_padding": found["downsample_padding"],
        "time_embedding_dim": found["time_embedding_dim"],
        "flip_sin_to_cos": found["flip_sin_to_cos"],
        "freq_shift": found["freq_shift"],
        "center_input": found["center_input_sample"],
    }


def down_types(found: Mapping[str, Any], known: tuple[str, ...]) -> tuple[str, ...]:
    """Blocks going down, of which all must be known."""
    return _block_types(found["down_block_types"], known, "down_block_types")


def up_types(found: Mapping[str, Any], known: tuple[str, ...]) -> tuple[str, ...]:
    """Blocks going up, of which all must be known."""
    return _block_types(found["up_block_types"], known, "up_block_types")


def _block_types(names: Any, known: tuple[str, ...], key: str) -> tuple[str, ...]:
    if not isinstance(names, (list, tuple)):
        raise _unsupported(key, names, "a list")
    names = tuple(str(name).removeprefix("UNetRes") for name in names)
    for name in names:
        if name not in known:
            raise _unsupported(key, name, ", ".join(known))
    return names


def _block_type(config: UNetConfig, way: str, level: int) -> str:
    """diffusers' name for a level's block."""
    names = DOWN_BLOCK_TYPES if way == "down" else UP_BLOCK_TYPES
    given = config.down_block_types if way == "down" else config.up_block_types
    if given is not None:
        return given[level] if way == "down" else given[-1 - level]
    if config.attends(way, level):
        return names[1]
    return names[2] if config.resampler(way, level) == "resnet" else names[0]


def _unsupported(key: str, value: Any, known: str) -> ValueError:
    return ValueError(f"{key} is {shown(value)}, which fastcond has no counterpart for; it knows {known}")
