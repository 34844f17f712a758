"""The network of diffusers that a `ConditionalUNet` has its parameter names from. Of fastcond it loads the configs alone."""

from __future__ import annotations

from typing import Any

from fastcond.config import UNetConfig


def diffusers_twin(config: UNetConfig) -> Any:
    """diffusers' UNet2DModel of the same shape, for conditioning "scale_shift" or "bias"."""
    import diffusers

    plain = {"conv": "{}Block2D", "resnet": "Resnet{}sampleBlock2D"}[config.resample]
    levels = range(len(config.block_out_channels))
    names = {
        side: tuple(f"Attn{side}Block2D" if config.attends("down", level) else plain.format(side) for level in levels)
        for side in ("Down", "Up")
    }
    return diffusers.UNet2DModel(
        sample_size=config.image_size,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        down_block_types=names["Down"],
        up_block_types=names["Up"][::-1],
        downsample_type=config.resample,
        upsample_type=config.resample,
        attention_head_dim=config.attention_head_dim,
        norm_num_groups=config.norm_num_groups,
        # The middle block's attention has a norm of its own only where this is given.
        attn_norm_num_groups=config.norm_num_groups if config.conditioning == "scale_shift" else None,
        norm_eps=config.norm_eps,
        resnet_time_scale_shift={"scale_shift": "scale_shift", "bias": "default"}[config.conditioning],
        num_class_embeds=config.num_classes + 1,
    )
