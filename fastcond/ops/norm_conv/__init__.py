"""A 3x3 convolution of a normalised, activated map, with bias and residual, in one pass: what a residual block is made of."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

from fastcond.ops.norm_conv.op import norm_conv_forward, pack_conv_weight_op


class ChannelNorm(NamedTuple):
    """A norm with its conditioning, as one affine map a channel: u = (x - mean) gain + offset, each [B, C].

    The mean is kept apart: folded into the offset it would cancel against x, and take the digits with it.
    """

    mean: Tensor
    gain: Tensor
    offset: Tensor


class ChannelStatistics(NamedTuple):
    """Of each channel of each image: mean [B, K] and m2 [B, K], the sum over its positions of squared distances to the mean."""

    mean: Tensor
    m2: Tensor


def norm_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    norm: ChannelNorm | None = None,
    activation: Literal["silu"] | None = None,
    packed: Tensor | None = None,
) -> Tensor:
    """conv3x3(act((x - mean) gain + offset), weight) + bias + residual with stride 1 and zeros around the map. For inference.

    Args:
        x: float [B, C, H, W]; fp32 channels_last is what the CPU kernel works on.
        weight: float [K, C, 3, 3].
        bias: float [K], or [B, K] for one of each image; None stands for 0.
        residual: float [B, K, H, W]; None stands for 0.
        norm: mean, gain and offset, float [B, C] each; None: x enters as it is.
        activation: "silu" or None.
        packed: `pack_conv_weight(weight)`, which a call without it makes anew.
    Returns: [B, K, H, W] of x's dtype, channels_last unless x is contiguous otherwise. Its bits depend on neither the rest of the
        batch nor the number of threads; the CPU kernel's differ between instruction sets. No gradient. The kernel takes sixteen
        channels at a time: for an image's own three, F.conv2d is faster.
    Raises: ValueError naming the argument that does not fit and what was found.
    Source: Lavin & Gray 2015 (Winograd's F(4x4, 3x3), section 4), with Barabasz et al. 2020 on the choice of points.
    """
    return _run(x, weight, bias, residual, norm, activation, packed, False)[0]


def norm_conv_with_statistics(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    norm: ChannelNorm | None = None,
    activation: Literal["silu"] | None = None,
    packed: Tensor | None = None,
) -> tuple[Tensor, ChannelStatistics]:
    """`norm_conv`, and the statistics of its result, from which the next norm is made: fp32 (fp64 for fp64), each [B, K].

    They are centred: gathered tile by tile and merged as Chan, Golub & LeVeque 1979 do, eq. 2.1.
    """
    y, mean, m2 = _run(x, weight, bias, residual, norm, activation, packed, True)
    return y, ChannelStatistics(mean, m2)


def pack_conv_weight(weight: Tensor) -> Tensor:
    """weight float [K, C, 3, 3] in the form that the CPU kernel multiplies by: fp32 [4 times its elements, K rounded up to 16].

    To be made again when the weight changes. Raises: ValueError for a weight of another shape.
    """
    if weight.dim() != 4 or weight.shape[2:] != (3, 3) or not weight.is_floating_point():
        raise ValueError(f"weight is {weight.dtype} {list(weight.shape)}; a float tensor [K, C, 3, 3] is needed")
    return pack_conv_weight_op(weight)


def _run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    norm: ChannelNorm | None,
    activation: str | None,
    packed: Tensor | None,
    statistics: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(f"x is {x.dtype} {list(x.shape)}; a float tensor [B, C, H, W] is needed")
    batch, channels, height, width = x.shape
    if weight.dim() != 4 or weight.shape[1:] != (channels, 3, 3):
        raise ValueError(f"weight has shape {list(weight.shape)}; [K, {channels}, 3, 3] is needed for x of shape {list(x.shape)}")
    features = weight.shape[0]
    if activation not in (None, "silu"):
        raise ValueError(f"activation is {activation!r}; choose 'silu' or None")
    if bias is not None and bias.shape not in ((features,), (batch, features)):
        raise ValueError(f"bias has shape {list(bias.shape)}; [{features}] or [{batch}, {features}] is needed")
    if residual is not None and residual.shape != (batch, features, height, width):
        raise ValueError(f"residual has shape {list(residual.shape)}; {[batch, features, height, width]} is needed")
    for name, value in zip(ChannelNorm._fields, norm or (), strict=False):
        if value.shape != (batch, channels):
            raise ValueError(f"norm.{name} has shape {list(value.shape)}; [{batch}, {channels}] is needed")
    mean, gain, offset = norm or (None, None, None)
    return norm_conv_forward(x, mean, gain, offset, weight, packed, bias, residual, activation == "silu", statistics)


__all__ = ["ChannelNorm", "ChannelStatistics", "norm_conv", "norm_conv_with_statistics", "pack_conv_weight"]
