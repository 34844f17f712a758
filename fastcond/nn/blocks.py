"""The blocks of the U-Net: norms, residual block, self-attention, down- and up-sampling. Parameter names are diffusers'."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcond.config import UNetConfig
from fastcond.ops import ada_group_norm, conv3x3, linear, token_attention


class FusedGroupNorm(nn.Module):
    """GroupNorm with learned weight and bias, then an optional conditioned scale and shift, then an optional SiLU.

    x [B, C, *] -> same shape, dtype and memory format. Its state_dict is that of nn.GroupNorm.
    """

    def __init__(self, num_groups: int, num_channels: int, eps: float = 1e-5, activation: Literal["silu"] | None = None) -> None:
        super().__init__()
        check_groups(num_channels, num_groups)
        self.num_groups, self.eps, self.activation = num_groups, eps, activation
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        return ada_group_norm(
            x,
            scale,
            shift,
            self.num_groups,
            weight=self.weight,
            bias=self.bias,
            eps=self.eps,
            activation=self.activation,
        )


class AdaGroupNorm(nn.Module):
    """Adaptive group norm: GroupNorm without affine parameters, scale and shift from one Linear of the embedding.

    y = act(xh (1 + scale) + shift), (scale, shift) = chunk(linear(emb), 2). The Linear starts at zero, so a new layer is a
    plain group norm. x [B, C, *], emb [B, D] -> x's shape, dtype and memory format.
    Source: Dhariwal & Nichol 2021, section 3.1; state_dict of diffusers' AdaGroupNorm.
    """

    def __init__(
        self,
        embedding_dim: int,
        num_channels: int,
        num_groups: int = 32,
        eps: float = 1e-5,
        activation: Literal["silu"] | None = None,
    ) -> None:
        super().__init__()
        check_groups(num_channels, num_groups)
        self.num_groups, self.eps, self.activation = num_groups, eps, activation
        self.linear = nn.Linear(embedding_dim, 2 * num_channels)
        _zero(self.linear)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.linear(emb).chunk(2, dim=1)
        return ada_group_norm(x, scale, shift, self.num_groups, eps=self.eps, activation=self.activation)


class Conv3x3(nn.Conv2d):
    """nn.Conv2d(in_channels, out_channels, 3, padding=1), whose initial weights and state_dict it has, by `ops.conv3x3`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return conv3x3(x, self.weight, self.bias)


class TokenLinear(nn.Linear):
    """nn.Linear of tokens [B, tokens, C], whose initial weights and state_dict it has, by `ops.linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class FirFilter(nn.Module):
    """Halves or doubles a map through the low-pass filter [1, 3, 3, 1] in both directions, zeros being around the map.

    [B, C, H, W] -> [B, C, H/2, W/2] or [B, C, 2H, 2W], a constant map keeping its value away from the edges.
    Source: Zhang 2019, section 3; Karras et al. 2020, appendix B, whose filter it is.
    """

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", torch.outer(taps, taps)[None, None], persistent=False)

    def forward(self, x: Tensor, how: Literal["down", "up"]) -> Tensor:
        return fir_resample(x, how, self.kernel)


def fir_resample(x: Tensor, how: Literal["down", "up"], kernel: Tensor) -> Tensor:
    """`FirFilter`'s map of x, for its kernel [1, 1, 4, 4], whose sum is 1."""
    channels = x.shape[1]
    weight = kernel.to(x.dtype).expand(channels, -1, -1, -1)
    if how == "down":
        return F.conv2d(x, weight, stride=2, padding=1, groups=channels)
    # Every other pixel of what is filtered is a zero, in both directions: the gain of 4 makes up for them.
    return F.conv_transpose2d(x, 4 * weight, stride=2, padding=1, groups=channels)


class ResnetBlock(nn.Module):
    """Residual block: norm, SiLU, (resample), conv3x3, conditioned norm, SiLU, dropout, conv3x3, plus the input.

    x [B, C_in, H, W], emb [B, D] -> [B, C_out, H', W'], where H', W' are H, W, half or twice of them by `resampling`.
    Conditioning by `config.conditioning`: "adagn" both norms from the embedding, no affine parameters; "scale_shift" the second
    norm, affine and then modulated by Linear(SiLU(emb)); "bias" Linear(SiLU(emb)) added before the second norm.
    Source: Ho et al. 2020 appendix B ("bias"); Dhariwal & Nichol 2021 sections 3.1 and A ("scale_shift", resampling inside).
    """

    def __init__(
        self,
        config: UNetConfig,
        in_channels: int,
        out_channels: int,
        resampling: Literal["down", "up"] | None = None,
        divisor: float = 1.0,
        groups: tuple[int, int] | None = None,
        filtered: bool = False,
    ) -> None:
        """divisor: what the sum with the input is divided by. groups: of the two norms; None: the network's.

        filtered: it resamples through a `FirFilter`, and has a shortcut convolution whatever its channels.
        """
        super().__init__()
        self.divisor = divisor
        first, second = groups or (config.norm_groups(in_channels), config.norm_groups(out_channels))
        eps, dim = config.norm_eps, config.embedding_dim
        self.conditioning, self.resampling = config.conditioning, resampling
        self.norm1: nn.Module
        self.norm2: nn.Module
        if self.conditioning == "adagn":
            self.norm1 = AdaGroupNorm(dim, in_channels, first, eps, "silu")
            self.norm2 = AdaGroupNorm(dim, out_channels, second, eps, "silu")
        else:
            self.norm1 = FusedGroupNorm(first, in_channels, eps, "silu")
            self.norm2 = FusedGroupNorm(second, out_channels, eps, "silu")
            parts = 2 if self.conditioning == "scale_shift" else 1
            self.time_emb_proj = nn.Linear(dim, parts * out_channels)
        self.conv1 = Conv3x3(in_channels, out_channels)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = Conv3x3(out_channels, out_channels)
        _zero(self.conv2)  # a new block is the identity: Dhariwal & Nichol's zero_module
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if filtered or in_channels != out_channels else None
        self.filter = FirFilter() if filtered else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.norm1(x, emb) if self.conditioning == "adagn" else self.norm1(x)
        if self.resampling is not None:
            resample = _resample if self.filter is None else self.filter
            h, x = resample(h, self.resampling), resample(x, self.resampling)
        h = self.conv1(h)
        if self.conditioning == "adagn":
            h = self.norm2(h, emb)
        else:
            projected = self.time_emb_proj(F.silu(emb))
            if self.conditioning == "scale_shift":
                h = self.norm2(h, *projected.chunk(2, dim=1))
            else:
                h = self.norm2(h + projected[:, :, None, None].to(h.dtype))
        h = self.conv2(self.dropout(h))
        y = (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h
        return y if self.divisor == 1.0 else y / self.divisor


class SelfAttention(nn.Module):
    """Multi-head self-attention over the H W positions, with the input added. x [B, C, H, W] -> same shape.

    Source: Vaswani et al. 2017, eq. 1; Dhariwal & Nichol 2021, section 3.
    """

    def __init__(self, config: UNetConfig, channels: int, norm_groups: int | None = None, divisor: float = 1.0) -> None:
        """norm_groups: of its norm, 0 for none, None for the network's. divisor: what the sum with the input is divided by."""
        super().__init__()
        self.heads, self.divisor = channels // (config.attention_head_dim or channels), divisor
        groups = config.norm_groups(channels) if norm_groups is None else norm_groups
        self.group_norm = FusedGroupNorm(groups, channels, config.norm_eps) if groups else None
        self.to_q = TokenLinear(channels, channels)
        self.to_k = TokenLinear(channels, channels)
        self.to_v = TokenLinear(channels, channels)
        self.to_out = nn.ModuleList([TokenLinear(channels, channels)])
        _zero(self.to_out[0])

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.attend(x if self.group_norm is None else self.group_norm(x))
        return y if self.divisor == 1.0 else y / self.divisor

    def attend(self, normalised: Tensor) -> Tensor:
        """The attention alone, of a normalised map [B, C, H, W]: what is added to the input."""
        height, width = normalised.shape[2:]
        # [B, HW, C] is a view of a channels_last map; one copy otherwise.
        tokens = normalised.flatten(2).transpose(1, 2)
        attended = token_attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens), self.heads)
        return self.to_out[0](attended).transpose(1, 2).unflatten(2, (height, width))


class Downsample(nn.Module):
    """Stride-2 convolution. [B, C, H, W] -> [B, C, H/2, W/2]. With padding 0 there are zeros below and to the right alone."""

    def __init__(self, channels: int, padding: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.conv(pad_for(self.conv, x))


def pad_for(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """x as a convolution of stride 2 wants it that does no padding itself."""
    return F.pad(x, (0, 1, 0, 1)) if conv.stride == (2, 2) and conv.padding == (0, 0) else x


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a convolution. [B, C, H, W] -> [B, C, 2H, 2W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv3x3(channels, channels)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.conv(_resample(x, "up"))


def make_downsampler(config: UNetConfig, level: int) -> nn.Module:
    """The module between a level and the next coarser one: (x, emb) -> half the size."""
    channels = config.block_out_channels[level]
    if config.resampler("down", level) == "resnet":
        return ResnetBlock(config, channels, channels, "down")
    return Downsample(channels, config.downsample_padding)


def make_upsampler(config: UNetConfig, level: int) -> nn.Module:
    """The module between a level and the next finer one: (x, emb) -> twice the size."""
    channels = config.block_out_channels[level]
    return ResnetBlock(config, channels, channels, "up") if config.resampler("up", level) == "resnet" else Upsample(channels)


def _resample(x: Tensor, how: Literal["down", "up"]) -> Tensor:
    return F.avg_pool2d(x, 2) if how == "down" else F.interpolate(x, scale_factor=2.0, mode="nearest")


def check_groups(channels: int, groups: int, settings: str = "block_out_channels or norm_num_groups") -> None:
    """Raises: ValueError where the channels are no whole groups. settings: what both numbers come from."""
    if groups < 1 or channels % groups:
        raise ValueError(f"a norm of {channels} channels cannot have {groups} groups; change {settings}")


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
