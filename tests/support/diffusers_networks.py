"""Small random networks of diffusers, one for each kind of block that a group norm is in, and a call of each."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.networks import perturb

_SHAPE = {"sample_size": 8, "layers_per_block": 1, "block_out_channels": (16, 32), "norm_num_groups": 8, "attention_head_dim": 8}
_PLAIN = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
_TEXT = {**_SHAPE, "cross_attention_dim": 16, "attention_head_dim": 4}

# name -> (class, arguments). What starts with "text" is told more than a timestep by encoder_hidden_states.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("UNet2DModel", {**_SHAPE, **_PLAIN, "num_class_embeds": 5, "dropout": 0.1}),
    "scale_shift": (
        "UNet2DModel",
        {
            **_SHAPE,
            **_PLAIN,
            "in_channels": 1,
            "out_channels": 2,
            "resnet_time_scale_shift": "scale_shift",
            "attn_norm_num_groups": 4,
            "norm_eps": 1e-6,
        },
    ),
    "resampling inside": (
        "UNet2DModel",
        {
            **_SHAPE,
            "in_channels": 4,
            "out_channels": 4,
            "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
            "downsample_type": "resnet",
            "upsample_type": "resnet",
            "resnet_time_scale_shift": "scale_shift",
        },
    ),
    "fir": (
        "UNet2DModel",
        {
            **_SHAPE,
            "block_out_channels": (32, 32),
            "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
            "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
        },
    ),
    "text": (
        "UNet2DConditionModel",
        {
            **_TEXT,
            "in_channels": 3,
            "out_channels": 3,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        },
    ),
    "text, simple": (
        "UNet2DConditionModel",
        {
            **_TEXT,
            "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
            "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            "resnet_time_scale_shift": "scale_shift",
            "resnet_skip_time_act": True,
            "resnet_out_scale_factor": 1.4,
        },
    ),
}


def build(name: str, **changes: Any) -> nn.Module:
    """The network of a config in training mode, every layer of which acts."""
    import diffusers

    torch.manual_seed(0)
    kind, arguments = CONFIGS[name]
    model = getattr(diffusers, kind)(**{**arguments, **changes})
    perturb(model)
    return model.train()


def inputs(model: Any, batch: int = 2) -> dict[str, Tensor]:
    """One call's arguments, in the model's dtype."""
    generator = torch.Generator().manual_seed(1)
    drawn = {
        "sample": torch.randn(batch, model.config.in_channels, 8, 8, generator=generator).to(model.dtype),
        "timestep": torch.arange(batch) * 300 + 21,
    }
    if "cross_attention_dim" in model.config:
        drawn["encoder_hidden_states"] = torch.randn(batch, 3, 16, generator=generator).to(model.dtype)
    elif model.config.num_class_embeds is not None:
        drawn["class_labels"] = torch.arange(batch) % model.config.num_class_embeds
    return drawn


def call(model: Any, arguments: dict[str, Tensor]) -> Tensor:
    """The model's output; the same dropout each time."""
    torch.manual_seed(2)
    return model(**arguments, return_dict=False)[0]


def output_and_gradients(model: nn.Module, arguments: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The output, and the gradients of a weighted sum of it by the sample and by every parameter that has one."""
    sample = arguments["sample"].detach().requires_grad_()
    output = call(model, {**arguments, "sample": sample})
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(3)).to(output.dtype)
    leaves = {"sample": sample, **dict(model.named_parameters())}
    gradients = torch.autograd.grad(output, list(leaves.values()), upstream, allow_unused=True)
    return output.detach(), {name: value for name, value in zip(leaves, gradients, strict=True) if value is not None}


def in_float64(model: nn.Module, arguments: dict[str, Tensor]) -> tuple[nn.Module, dict[str, Tensor]]:
    """The same network and the same call with every float widened."""
    wide = {name: value.double() if value.is_floating_point() else value for name, value in arguments.items()}
    return copy.deepcopy(model).double(), wide
