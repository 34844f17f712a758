"""Transformer blocks over one label token: the conditioning of diffusers' `UNet2DConditionModel` where it is told a label.

A softmax over one key is 1, so a position's cross-attention is out(value(token)) whatever the position holds: a bias that
the label alone decides. It is computed as that, in training too. What then has no part in the result (queries, keys, and the
norm before them) is kept as buffers, for the file's sake.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcond.config import UNetConfig
from fastcond.nn.blocks import FusedGroupNorm
from fastcond.ops import token_attention

_NORM_EPS = 1e-6  # of the norm before a transformer, whatever the network's own is


class LabelMLP(nn.Module):
    """Linear, dropout, GELU, Linear, on a label as a vector: one-hot, soft, or several at once. [B, K] -> [B, width].

    positions: of its two Linears in the Sequential that it is in a file, which may hold the dropout too.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.positions = (0, 2)
        self.linear_1 = nn.Linear(config.num_classes, config.label_hidden_dim)
        self.dropout = nn.Dropout(config.label_dropout)
        self.linear_2 = nn.Linear(config.label_hidden_dim, config.label_token_dim or config.label_context_dim)

    def forward(self, label: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.dropout(self.linear_1(label))))


class LabelTransformer(nn.Module):
    """Group norm, 1x1 convolution, transformer block, 1x1 convolution, with the input added.

    x [B, C, H, W], token [B, context] -> x's shape. State_dict of diffusers' Transformer2DModel with one layer.
    Source: Rombach et al. 2022, appendix E.2.1.
    """

    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__()
        self.norm = FusedGroupNorm(config.norm_groups(channels), channels, _NORM_EPS)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(config, channels)])
        self.proj_out = nn.Conv2d(channels, channels, 1)
        for parameter in self.proj_out.parameters():
            nn.init.zeros_(parameter)  # a new block is the identity

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        return self.transform(x, [block.get_submodule("attn2")(token) for block in self.transformer_blocks])

    def transform(self, x: Tensor, label_biases: Sequence[Tensor]) -> Tensor:
        """label_biases: [B, C] of each transformer block, what its cross-attention adds."""
        height, width = x.shape[2:]
        tokens = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        for block, bias in zip(self.transformer_blocks, label_biases, strict=True):
            tokens = block(tokens, bias)
        return self.proj_out(tokens.transpose(1, 2).unflatten(2, (height, width))) + x


class TransformerBlock(nn.Module):
    """Self-attention, what the label adds, feed-forward, each with the input added. tokens [B, N, C], label_bias [B, C]."""

    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = TokenAttention(config.label_attention_heads, channels)
        self.norm2 = _frozen(nn.LayerNorm(channels))
        self.attn2 = LabelAttention(config.label_context_dim, channels)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, tokens: Tensor, label_bias: Tensor) -> Tensor:
        tokens = tokens + self.attn1(self.norm1(tokens))
        tokens = tokens + label_bias[:, None].to(tokens.dtype)
        return tokens + self.ff(self.norm3(tokens))


class TokenAttention(nn.Module):
    """Multi-head self-attention without biases of queries, keys and values. [B, N, C] -> [B, N, C]."""

    def __init__(self, heads: int, channels: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(channels, channels, bias=False)
        self.to_v = nn.Linear(channels, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, tokens: Tensor) -> Tensor:
        return self.to_out[0](token_attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens), self.heads))


class LabelAttention(nn.Module):
    """What cross-attention over one token adds to every position. token [B, context] -> [B, C]."""

    def __init__(self, context: int, channels: int) -> None:
        super().__init__()
        self.to_q = _frozen(nn.Linear(channels, channels, bias=False))
        self.to_k = _frozen(nn.Linear(context, channels, bias=False))
        self.to_v = nn.Linear(context, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, token: Tensor) -> Tensor:
        return self.to_out[0](self.to_v(token))


class FeedForward(nn.Module):
    """Linear(C, 8C) as h and gate, h gelu(gate), Linear(4C, C). Source: Shazeer 2020, eq. 6 (GEGLU)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        gated = nn.Module()
        gated.proj = nn.Linear(channels, 8 * channels)
        self.net = nn.ModuleList([gated, nn.Identity(), nn.Linear(4 * channels, channels)])

    def forward(self, tokens: Tensor) -> Tensor:
        h, gate = self.net[0].get_submodule("proj")(tokens).chunk(2, dim=-1)
        return self.net[2](h * F.gelu(gate))


def label_vector(label: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """label int64 [B] as one-hot rows [B, K], zeros for the null label K; float [B, K] as it is.

    Raises: ValueError for a label that is neither.
    """
    if label.is_floating_point():
        if label.dim() != 2 or label.shape[1] != num_classes:
            raise ValueError(f"label is {label.dtype} {list(label.shape)}; int64 [B] or float [B, {num_classes}] is needed")
        return label.to(dtype)
    return F.one_hot(label, num_classes + 1)[:, :num_classes].to(dtype)


def _frozen(module: nn.Module) -> nn.Module:
    """The module with its parameters as buffers: nothing trains them."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        delattr(module, name)
        module.register_buffer(name, parameter.detach())
    return module
