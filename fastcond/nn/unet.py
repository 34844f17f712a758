"""The class-conditional U-Net: (x_t, timestep, label) -> output, with diffusers' parameter names.

| conditioning      | what a block does                                              | the same as                            |
|-------------------|----------------------------------------------------------------|----------------------------------------|
| `adagn`           | both norms without affine parameters, modulated by Linear(emb) | the AdaGN block of the course chapter  |
| `scale_shift`     | norm2 affine, then modulated by Linear(SiLU(emb))              | ADM; diffusers UNet2DModel scale_shift |
| `bias`            | Linear(SiLU(emb)) added before norm2                           | DDPM; diffusers UNet2DModel default    |
| `label_attention` | time as `bias`; transformer blocks over one label token        | diffusers UNet2DConditionModel         |
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastcond.config import DiffusionConfig, UNetConfig
from fastcond.nn.blocks import FusedGroupNorm, ResnetBlock, SelfAttention, check_groups, make_downsampler, make_upsampler
from fastcond.nn.embeddings import EmbeddingMLP, FourierProjection, sinusoidal_embedding
from fastcond.nn.label_attention import LabelMLP, LabelTransformer, label_vector
from fastcond.nn.skip_blocks import SkipDownBlock, SkipUpBlock


class DownBlock(nn.Module):
    """`layers` residual blocks, each with attention where asked, then a downsampler but on the last level."""

    def __init__(self, config: UNetConfig, level: int, in_channels: int) -> None:
        super().__init__()
        out_channels, layers = config.block_out_channels[level], config.layers_per_block
        self.resnets = nn.ModuleList(
            ResnetBlock(config, in_channels if j == 0 else out_channels, out_channels) for j in range(layers)
        )
        if config.attends("down", level):
            self.attentions = nn.ModuleList(make_attention(config, out_channels) for _ in range(layers))
        if level < len(config.block_out_channels) - 1:
            self.downsamplers = nn.ModuleList([make_downsampler(config, level)])

    def forward(self, x: Tensor, emb: Tensor, token: Tensor | None = None) -> list[Tensor]:
        """Every intermediate map, the last the block's output; all are skips."""
        maps = []
        attentions = getattr(self, "attentions", [None] * len(self.resnets))
        for resnet, attention in zip(self.resnets, attentions, strict=True):
            x = resnet(x, emb)
            x = x if attention is None else _attended(attention, x, token)
            maps.append(x)
        for downsampler in getattr(self, "downsamplers", []):
            x = downsampler(x, emb)
            maps.append(x)
        return maps


class MidBlock(nn.Module):
    """Residual block, self-attention where asked, residual block, at the coarsest level."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        channels, divisor = config.block_out_channels[-1], config.mid_block_scale_factor
        if config.mid_attention:
            if config.mid_attention_norm_groups:
                check_groups(channels, config.mid_attention_norm_groups, "block_out_channels or mid_attention_norm_groups")
            self.attentions = nn.ModuleList([make_attention(config, channels, config.mid_attention_norm_groups, divisor)])
        self.resnets = nn.ModuleList(ResnetBlock(config, channels, channels, divisor=divisor) for _ in range(2))

    def forward(self, x: Tensor, emb: Tensor, token: Tensor | None = None) -> Tensor:
        x = self.resnets[0](x, emb)
        for attention in getattr(self, "attentions", ()):
            x = _attended(attention, x, token)
        return self.resnets[1](x, emb)


class UpBlock(nn.Module):
    """One residual block for each of the level's skips, then an upsampler but on the finest level."""

    def __init__(self, config: UNetConfig, level: int, in_channels: int, skip_channels: list[int]) -> None:
        super().__init__()
        out_channels = config.block_out_channels[level]
        self.resnets = nn.ModuleList(
            ResnetBlock(config, (in_channels if j == 0 else out_channels) + skip, out_channels)
            for j, skip in enumerate(skip_channels)
        )
        if config.attends("up", level):
            self.attentions = nn.ModuleList(make_attention(config, out_channels) for _ in skip_channels)
        if level > 0:
            self.upsamplers = nn.ModuleList([make_upsampler(config, level)])

    def forward(self, x: Tensor, skips: list[Tensor], emb: Tensor, token: Tensor | None = None) -> Tensor:
        """Consumes the last `layers_per_block + 1` of skips."""
        attentions = getattr(self, "attentions", [None] * len(self.resnets))
        for resnet, attention in zip(self.resnets, attentions, strict=True):
            x = resnet(torch.cat([x, skips.pop()], dim=1), emb)
            x = x if attention is None else _attended(attention, x, token)
        for upsampler in getattr(self, "upsamplers", []):
            x = upsampler(x, emb)
        return x


def make_attention(config: UNetConfig, channels: int, norm_groups: int | None = None, divisor: float = 1.0) -> nn.Module:
    """What follows a residual block where a level attends: [B, C, H, W] -> same shape."""
    if config.conditioning == "label_attention":
        return LabelTransformer(config, channels)
    return SelfAttention(config, channels, norm_groups, divisor)


def _attended(attention: nn.Module, x: Tensor, token: Tensor | None) -> Tensor:
    return attention(x) if token is None else attention(x, token)


class ConditionalUNet(nn.Module):
    """The class-conditional denoiser.

    Args:
        config: shape of the network.
        diffusion: what its output means (schedule and prediction); carried along for samplers, not used in forward.

    emb = MLP(sinusoidal(t)) + a row of the class-embedding table, of K + 1; row K is the null label's (Ho & Salimans 2022).
    Its state_dict is the file format; the names are those of diffusers' UNet2DModel (AdaGN's Linear is `norm{1,2}.linear`).
    """

    def __init__(self, config: UNetConfig, diffusion: DiffusionConfig | None = None) -> None:
        super().__init__()
        self.config, self.diffusion = config, diffusion or DiffusionConfig()
        channels, dim = config.block_out_channels, config.embedding_dim
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        wave_dim = channels[0]
        if config.time_embedding == "fourier":
            self.time_proj: nn.Module | None = FourierProjection(channels[0])
            wave_dim = 2 * channels[0]
        elif config.time_embedding == "learned":
            self.time_proj = nn.Embedding(config.num_timesteps or 1, channels[0])
        else:
            self.time_proj = None
        self.time_embedding = EmbeddingMLP(wave_dim, dim)
        self.class_embedding: nn.Module | None = None
        if config.conditioning == "label_attention":
            self.label_embedding = LabelMLP(config)
            token_dim = config.label_token_dim
            self.encoder_hid_proj = None if token_dim is None else nn.Linear(token_dim, config.label_context_dim)
        elif config.class_embedding == "table":
            self.class_embedding = nn.Embedding(config.largest_label + 1, dim)
        elif config.class_embedding == "timestep":
            self.class_embedding = EmbeddingMLP(wave_dim, dim)
        self.class_projection = EmbeddingMLP(dim, dim) if config.class_embedding_mlp else None
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        skip_channels = [channels[0]]
        for level in range(len(channels)):
            down_kind = SkipDownBlock if config.skips("down", level) else DownBlock
            self.down_blocks.append(down_kind(config, level, channels[max(level - 1, 0)]))
            has_downsampler = level < len(channels) - 1
            skip_channels += [channels[level]] * (config.layers_per_block + has_downsampler)
        self.mid_block = MidBlock(config) if config.mid_block else None
        for level in reversed(range(len(channels))):
            below = channels[min(level + 1, len(channels) - 1)]
            taken = [skip_channels.pop() for _ in range(config.layers_per_block + 1)]
            up_kind = SkipUpBlock if config.skips("up", level) else UpBlock
            self.up_blocks.append(up_kind(config, level, below, taken))
        self.conv_norm_out = FusedGroupNorm(config.norm_groups(channels[0]), channels[0], config.norm_eps, "silu")
        self.conv_out = nn.Conv2d(channels[0], config.out_channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return self.conv_in.weight.dtype

    def embed(self, timestep: Tensor, label: Tensor) -> Tensor:
        """emb: timestep [B], integer or float, and label [B], as `forward`'s, as [B, D] in the parameters' dtype."""
        class_emb = self.embed_label(label)
        emb = self.embed_timestep(timestep)
        return emb if class_emb is None else emb + class_emb

    def embed_timestep(self, timestep: Tensor) -> Tensor:
        """The timestep's part of emb: timestep [B], integer or float, as [B, D]."""
        return self.time_embedding(self._waves(timestep))

    def embed_label(self, label: Tensor) -> Tensor | None:
        """The label's part of emb: label int64 [B] in [0, K], or float [B, D] for "identity", as [B, D]; None for "none"."""
        kind = self.config.class_embedding
        if kind == "none" or self.config.conditioning == "label_attention":
            return None
        if kind == "identity":
            return label.to(self.dtype)
        assert self.class_embedding is not None, "made in __init__"
        class_emb = self.class_embedding(self._waves(label) if kind == "timestep" else label)
        return class_emb if self.class_projection is None else self.class_projection(class_emb)

    def embed_token(self, label: Tensor) -> Tensor | None:
        """The token of "label_attention": label int64 [B] in [0, K], or float [B, K], as [B, context]; None for others."""
        if self.config.conditioning != "label_attention":
            return None
        token = self.label_embedding(label_vector(label, self.config.num_classes, self.dtype))
        return token if self.encoder_hid_proj is None else self.encoder_hid_proj(token)

    def _waves(self, timestep: Tensor) -> Tensor:
        """What the MLP of a timestep sees."""
        if self.time_proj is not None:
            return self.time_proj(timestep).to(self.dtype)
        config = self.config
        sinusoid = sinusoidal_embedding(
            timestep, config.block_out_channels[0], flip_sin_to_cos=config.flip_sin_to_cos, freq_shift=config.freq_shift
        )
        return sinusoid.to(self.dtype)

    def check_size(self, height: int, width: int) -> None:
        """Raises: ValueError for a size of x_t that the levels do not divide."""
        factor = 2 ** (len(self.down_blocks) - 1)
        if height % factor or width % factor:
            levels = len(self.down_blocks)
            raise ValueError(f"x_t is {height}x{width}; {levels} levels need multiples of {factor} in both directions")

    def forward(self, x_t: Tensor, timestep: Tensor, label: Tensor) -> Tensor:
        """Predict eps, v or x_0 (by `diffusion.prediction`).

        Args:
            x_t: float [B, C, H, W], in [-1, 1] plus noise, contiguous or channels_last; H, W as in the config, or any other
                size that the levels divide.
            timestep: [B], 0 .. T-1, integer or float. label: int64 [B], 0 .. K-1, or K for no condition; float [B, K]
                too with "label_attention"; see the config's class_embedding for other kinds.
        Returns: float [B, out_channels, H, W].
        Raises: ValueError for a size that the levels do not divide.
        """
        self.check_size(*x_t.shape[2:])
        emb, token = self.embed(timestep, label), self.embed_token(label)
        x_t = 2 * x_t - 1 if self.config.center_input else x_t
        skips, image = [self.conv_in(x_t)], x_t
        for block in self.down_blocks:
            if isinstance(block, SkipDownBlock):
                maps, image = block(skips[-1], emb, image)
            else:
                maps = block(skips[-1], emb, token)
            skips += maps
        x = skips[-1] if self.mid_block is None else self.mid_block(skips[-1], emb, token)
        drawn: Tensor | None = None
        for block in self.up_blocks:
            if isinstance(block, SkipUpBlock):
                x, drawn = block(x, skips, emb, drawn)
            else:
                x = block(x, skips, emb, token)
        y = self.conv_out(self.conv_norm_out(x))
        y = y if drawn is None else y + drawn
        return y / timestep.to(y.dtype).reshape(-1, 1, 1, 1) if self.config.time_embedding == "fourier" else y
