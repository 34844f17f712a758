"""small_attention in plain PyTorch: the definition of correct, for every device and float dtype.

    u = (x - mean) gain + offset,   q, k, v = qkv(u),   y = out(softmax(q k^T / sqrt(d)) v) + residual

a position is a token, the channels are heads one after another, d = C / heads. Arithmetic is fp32 (fp64 for fp64).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcond.ops.packing import pack_matrix, padded


def forward(
    x: Tensor,
    mean: Tensor | None,
    gain: Tensor | None,
    offset: Tensor | None,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    packed: Tensor | None,
    residual: Tensor | None,
    heads: int,
) -> Tensor:
    """Returns y like x. `packed` is another form of the weights and not read here."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    batch, channels = x.shape[:2]
    u = x.to(wide).flatten(2)
    if mean is not None and gain is not None and offset is not None:
        u = (u - mean.to(wide)[:, :, None]) * gain.to(wide)[:, :, None] + offset.to(wide)[:, :, None]
    tokens = u.transpose(1, 2)
    qkv = F.linear(tokens, qkv_weight.to(wide), None if qkv_bias is None else qkv_bias.to(wide))
    q, k, v = qkv.reshape(batch, tokens.shape[1], 3, heads, channels // heads).permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(tokens.shape)
    y = F.linear(attended, out_weight.to(wide), None if out_bias is None else out_bias.to(wide))
    y = y.transpose(1, 2).reshape(x.shape)
    if residual is not None:
        y = y + residual.to(wide)
    return y.to(x.dtype).contiguous(memory_format=memory_format(x))


def pack(qkv_weight: Tensor, out_weight: Tensor) -> Tensor:
    """Both weights as the CPU kernel reads them: float32, first qkv_weight's blocks."""
    return torch.cat([pack_matrix(qkv_weight), pack_matrix(out_weight)])


def packed_size(channels: int) -> int:
    """Elements of the packed weights."""
    return channels * sum(padded(features) for features in (3 * channels, channels))


def memory_format(x: Tensor) -> torch.memory_format:
    """y's: contiguous for an x that is that and nothing else, channels_last otherwise."""
    only_contiguous = x.is_contiguous() and not x.is_contiguous(memory_format=torch.channels_last)
    return torch.contiguous_format if only_contiguous else torch.channels_last
