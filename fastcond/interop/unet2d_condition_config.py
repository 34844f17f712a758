"""config.json of diffusers' `UNet2DConditionModel` and our `UNetConfig`, where the model is told one label token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastcond.config import UNetConfig, from_dict
from fastcond.interop.unet2d_config import down_types, shared_settings, up_types
from fastcond.messages import shown
from fastcond.network_bounds import check_sizes

CLASS = "UNet2DConditionModel"

# What has no counterpart here, with the values under which it changes nothing. Keys that are absent have these.
_MUST_BE: Mapping[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "addition_embed_type": (None,),
    "attention_type": ("default",),
    "class_embed_type": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "dual_cross_attention": (False,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1.0,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
    "transformer_layers_per_block": (1,),
    "upcast_attention": (False, None),
    "use_linear_projection": (False,),
}
_DEFAULTS: Mapping[str, Any] = {
    "sample_size": None,
    "in_channels": 4,
    "out_channels": 4,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "dropout": 0.0,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "cross_attention_dim": 1280,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "attention_head_dim": 8,
    "num_attention_heads": None,
    "time_embedding_dim": None,
}
_DOWN, _UP = ("DownBlock2D", "CrossAttnDownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")


def label_unet_config(
    config: Mapping[str, Any],
    *,
    num_classes: int,
    label_hidden_dim: int,
    has_null_label: bool = False,
    image_size: tuple[int, int] | None = None,
) -> UNetConfig:
    """Our words for a `UNet2DConditionModel`'s config.json.

    Args: num_classes, label_hidden_dim: of the label MLP, whose weights are in a file of their own. has_null_label: whether a
        row of zeros stands for "no condition". image_size: (H, W); None: its sample_size.
    Raises: ValueError naming the key whose value has no counterpart here, and the value.
    """
    if config.get("_class_name", CLASS) != CLASS:
        raise ValueError(f"_class_name is {shown(config['_class_name'])}; a config of {CLASS} is needed")
    found = {**_DEFAULTS, **{key: value for key, value in config.items() if key in _DEFAULTS}}
    if found["encoder_hid_dim"] is not None and found["encoder_hid_dim_type"] is None:
        found["encoder_hid_dim_type"] = "text_proj"  # as diffusers does
    # Without a projection, the token is as wide as cross-attention takes it.
    kind = None if found["encoder_hid_dim"] is None else "text_proj"
    if found["encoder_hid_dim_type"] != kind:
        says, width = (shown(found[key]) for key in ("encoder_hid_dim_type", "encoder_hid_dim"))
        here = f"encoder_hid_dim_type is {says} with encoder_hid_dim {width}"
        raise ValueError(f"{here}, which fastcond has no counterpart for; it knows {kind!r} there")
    for key, allowed in _MUST_BE.items():
        value = found.get(key, config.get(key, allowed[0]))
        if value not in allowed:
            raise ValueError(f"{key} is {shown(value)}, which fastcond has no counterpart for; it knows {allowed[0]!r}")
    # The field is named for a dimension and holds the number of heads (diffusers, issue 2011).
    heads = found["num_attention_heads"] or found["attention_head_dim"]
    heads_key = "num_attention_heads" if found["num_attention_heads"] else "attention_head_dim"
    # Under the file's names, which our fields' are not.
    for key in (heads_key, "cross_attention_dim", "encoder_hid_dim"):
        value = found[key]
        if type(value) is not int and not (value is None and key == "encoder_hid_dim"):
            raise ValueError(f"{key} is {shown(value)}; one number for all blocks is needed")
        check_sizes(key, (value,))
    values = {
        **shared_settings(found, image_size),
        "num_classes": num_classes,
        "conditioning": "label_attention",
        "attention_head_dim": None,
        "down_block_types": down_types(found, _DOWN),
        "up_block_types": up_types(found, _UP),
        "has_null_label": has_null_label,
        "label_hidden_dim": label_hidden_dim,
        "label_token_dim": found["encoder_hid_dim"],
        "label_context_dim": found["cross_attention_dim"],
        "label_attention_heads": heads,
    }
    return from_dict(UNetConfig, values, "config.json")


def unet2d_condition_config(config: UNetConfig) -> dict[str, Any]:
    """A `UNet2DConditionModel`'s config.json for our network. Raises: ValueError for one of another conditioning."""
    if config.conditioning != "label_attention":
        raise ValueError(f"conditioning {config.conditioning!r} is not what diffusers' {CLASS} does")
    levels = range(len(config.block_out_channels))
    height, width = config.image_size
    return {
        "_class_name": CLASS,
        "sample_size": height if height == width else [height, width],
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "center_input_sample": config.center_input,
        "flip_sin_to_cos": config.flip_sin_to_cos,
        "freq_shift": config.freq_shift,
        "down_block_types": [_DOWN[config.attends("down", level)] for level in levels],
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": [_UP[config.attends("up", level)] for level in reversed(levels)],
        "block_out_channels": list(config.block_out_channels),
        "layers_per_block": config.layers_per_block,
        "downsample_padding": config.downsample_padding,
        "mid_block_scale_factor": config.mid_block_scale_factor,
        "dropout": config.dropout,
        "act_fn": "silu",
        "norm_num_groups": config.norm_num_groups,
        "norm_eps": config.norm_eps,
        "cross_attention_dim": config.label_context_dim,
        "encoder_hid_dim": config.label_token_dim,
        "encoder_hid_dim_type": None if config.label_token_dim is None else "text_proj",
        "attention_head_dim": config.label_attention_heads,
        "time_embedding_dim": config.time_embedding_dim,
        "resnet_time_scale_shift": "default",
        "transformer_layers_per_block": 1,
        "use_linear_projection": False,
    }
