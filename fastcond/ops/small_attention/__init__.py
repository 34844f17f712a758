"""Self-attention over the positions of a small map, from the norm to the residual in one pass."""

from __future__ import annotations

from torch import Tensor

from fastcond.ops.norm_conv import ChannelNorm
from fastcond.ops.small_attention import reference
from fastcond.ops.small_attention.op import small_attention_forward


def small_attention(
    x: Tensor,
    qkv_weight: Tensor,
    out_weight: Tensor,
    heads: int,
    *,
    qkv_bias: Tensor | None = None,
    out_bias: Tensor | None = None,
    residual: Tensor | None = None,
    norm: ChannelNorm | None = None,
    packed: Tensor | None = None,
) -> Tensor:
    """out(softmax(q k^T / sqrt(C / heads)) v) + residual, where q, k, v = qkv((x - mean) gain + offset). For inference.

    Args:
        x: float [B, C, H, W], of which every position is a token; fp32 channels_last is what the CPU kernel works on.
        qkv_weight: float [3C, C]: of queries, keys and values; each is the heads one after another.
        out_weight: float [C, C].
        heads: a divisor of C.
        qkv_bias, out_bias: float [3C] and [C]; None stands for 0.
        residual: float like x; None stands for 0.
        norm: mean, gain and offset, float [B, C] each; None: x enters as it is.
        packed: `pack_attention_weights(qkv_weight, out_weight)`, which a call without it makes anew.
    Returns: x's shape and dtype, channels_last unless x is contiguous otherwise. Its bits depend on neither the rest of the batch
        nor the number of threads; the CPU kernel's differ between instruction sets. Meant for up to some hundred positions: the
        time grows with their square. No gradient.
    Raises: ValueError naming the argument that does not fit and what was found.
    Source: Vaswani et al. 2017, eq. 1.
    """
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(f"x is {x.dtype} {list(x.shape)}; a float tensor [B, C, H, W] is needed")
    mean, gain, offset = norm or (None, None, None)
    weights = qkv_weight, qkv_bias, out_weight, out_bias
    return small_attention_forward(x, mean, gain, offset, *weights, packed, residual, heads)


def pack_attention_weights(qkv_weight: Tensor, out_weight: Tensor) -> Tensor:
    """Both weights in the form that the CPU kernel multiplies by, fp32. To be made again when a weight changes."""
    if qkv_weight.dim() != 2 or out_weight.dim() != 2:
        raise ValueError(f"weights are {list(qkv_weight.shape)}, {list(out_weight.shape)}; [3C, C] and [C, C] are needed")
    return reference.pack(qkv_weight, out_weight)


__all__ = ["pack_attention_weights", "small_attention"]
