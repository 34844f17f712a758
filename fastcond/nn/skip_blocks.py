"""Levels that pass on the image beside their map: the down and up blocks of score SDE's NCSN++.

Going down, x_t is halved level by level through a `FirFilter`, and a 1x1 convolution of it is added to the map that goes to the
next level. Going up, each level adds a 3x3 convolution of its map to an image, which is doubled on the way to the next, and
which the network's output is added to at the end. Residual sums are divided by sqrt(2), and resampling is filtered.

Source: Song et al. 2021, appendix H.1 ("input skip" and "output skip", of Karras et al. 2020, section 4.1); parameter names and
numbers of groups are those of diffusers' SkipDownBlock2D, AttnSkipDownBlock2D, SkipUpBlock2D and AttnSkipUpBlock2D.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastcond.config import UNetConfig
from fastcond.nn.blocks import FirFilter, FusedGroupNorm, ResnetBlock, SelfAttention, check_groups

_DIVISOR = 2**0.5
_IMAGE_CHANNELS = 3  # in diffusers' blocks, whatever the network's are
_ATTENTION_GROUPS = 32


class SkipDownBlock(nn.Module):
    """`layers_per_block` residual blocks, each with attention where asked; then, but on the last level, down with the image."""

    def __init__(self, config: UNetConfig, level: int, in_channels: int) -> None:
        super().__init__()
        channels, layers = config.block_out_channels[level], config.layers_per_block
        inputs = [in_channels] + [channels] * (layers - 1)
        self.resnets = nn.ModuleList(_resnet(config, each, channels, _groups(each)) for each in inputs)
        if config.attends("down", level):
            self.attentions = nn.ModuleList(_attention(config, channels) for _ in inputs)
        self.resamples = level < len(config.block_out_channels) - 1
        if self.resamples:
            self.resnet_down = ResnetBlock(config, channels, channels, "down", _DIVISOR, (_groups(channels),) * 2, filtered=True)
            self.filter = FirFilter()
            self.skip_conv = nn.Conv2d(_IMAGE_CHANNELS, channels, 1)

    def forward(self, x: Tensor, emb: Tensor, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """x [B, C_in, H, W], image [B, 3, H, W] -> every intermediate map, as of `DownBlock`, and the next level's image."""
        maps = []
        attentions = getattr(self, "attentions", [None] * len(self.resnets))
        for resnet, attention in zip(self.resnets, attentions, strict=True):
            x = resnet(x, emb)
            x = x if attention is None else attention(x)
            maps.append(x)
        if self.resamples:
            image = self.filter(image, "down")
            maps.append(self.skip_conv(image) + self.resnet_down(x, emb))
        return maps, image


class SkipUpBlock(nn.Module):
    """One residual block for each of the level's skips, one attention where asked; then, but on the finest level, up."""

    def __init__(self, config: UNetConfig, level: int, in_channels: int, skip_channels: list[int]) -> None:
        super().__init__()
        channels, attends = config.block_out_channels[level], config.attends("up", level)
        inputs = [in_channels] + [channels] * (len(skip_channels) - 1)
        self.resnets = nn.ModuleList()
        for own, skip in zip(inputs, skip_channels, strict=True):
            # With attention, diffusers divides the skip's channels alone by four before it adds them.
            groups = _checked(own + skip, min(own + skip // 4, 32)) if attends else _groups(own + skip)
            self.resnets.append(_resnet(config, own + skip, channels, groups))
        if attends:
            self.attentions = nn.ModuleList([_attention(config, channels)])
        self.filter = FirFilter()
        self.resamples = level > 0
        if self.resamples:
            self.skip_norm = FusedGroupNorm(_groups(channels), channels, config.norm_eps, "silu")
            self.skip_conv = nn.Conv2d(channels, _IMAGE_CHANNELS, 3, padding=1)
            self.resnet_up = ResnetBlock(config, channels, channels, "up", _DIVISOR, (_groups(channels),) * 2, filtered=True)

    def forward(self, x: Tensor, skips: list[Tensor], emb: Tensor, image: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Consumes the last `layers_per_block + 1` of skips.

        x [B, C_in, H, W], image [B, 3, H/2, W/2], or None where no level before has begun one -> x of the next level, and the
        image [B, 3, H, W], or None where it was and the level is the finest.
        """
        for resnet in self.resnets:
            x = resnet(torch.cat([x, skips.pop()], dim=1), emb)
        for attention in getattr(self, "attentions", ()):
            x = attention(x)
        if image is not None:
            image = self.filter(image, "up")
        if self.resamples:
            drawn = self.skip_conv(self.skip_norm(x))
            image = drawn if image is None else image + drawn
            x = self.resnet_up(x, emb)
        return x, image


def _resnet(config: UNetConfig, in_channels: int, channels: int, groups: int) -> ResnetBlock:
    return ResnetBlock(config, in_channels, channels, divisor=_DIVISOR, groups=(groups, _groups(channels)))


def _attention(config: UNetConfig, channels: int) -> SelfAttention:
    return SelfAttention(config, channels, _checked(channels, _ATTENTION_GROUPS), _DIVISOR)


def _groups(channels: int) -> int:
    return _checked(channels, min(channels // 4, 32))


def _checked(channels: int, groups: int) -> int:
    # A Skip block's groups follow from its channels alone, whatever norm_num_groups is.
    check_groups(channels, groups, "block_out_channels")
    return groups
