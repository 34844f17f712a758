"""The native CPU kernels' launchers, for float32.

The kernels work channels_last: maps of another layout are copied into that, and results back. Weights are packed at every call,
which costs a few hundredths of the convolution, and are read as they lie.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastcond.ops import native
from fastcond.ops.conv3x3 import reference
from fastcond.ops.norm_conv.reference import packed_size

# Channels and features that fill a register; with fewer oneDNN's direct convolution is faster (benchmarks/bench_conv3x3.py).
LEAST_CHANNELS = 16


def is_faster(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the kernels take the operands and pay; of shapes, a question of the weight's alone."""
    if native.native is None or any(value is not None and value.dtype != torch.float32 for value in (x, weight, bias)):
        return False
    return weight.dim() == 4 and min(weight.shape[:2]) >= LEAST_CHANNELS and x.numel() > 0


def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`reference.native_forward`, natively where the kernels take x."""
    _check(x, weight, bias)
    if not _taken(x, weight, bias):
        return reference.native_forward(x, weight, bias)
    y = _convolve(x, _pack(weight, False), bias, weight.shape[0])
    return y.contiguous(memory_format=reference.memory_format(x, weight))


def backward(dy: Tensor, x: Tensor, weight: Tensor, needed: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """`reference.native_backward`, natively where the kernels take x."""
    _check(x, weight, None)
    features, channels = weight.shape[:2]
    if dy.shape != (x.shape[0], features, *x.shape[2:]):
        raise ValueError(f"dy is {list(dy.shape)} for {features} features of x {list(x.shape)}")
    if not _taken(x, weight, dy):
        return reference.native_backward(dy, x, weight, needed)
    library = native.native
    assert library is not None
    dy = dy.contiguous(memory_format=torch.channels_last)
    dx, dweight, dbias = native.floats(0), native.floats(0), native.floats(0)
    if needed[0]:
        dx = _convolve(dy, _pack(weight, True), None, channels).contiguous(memory_format=reference.memory_format(x))
    if needed[1]:
        dweight = native.floats((features, channels, 3, 3), torch.channels_last)
    if needed[2]:
        dbias = native.floats(features)
    if needed[1] or needed[2]:
        x = x.contiguous(memory_format=torch.channels_last)
        addresses = [x.data_ptr(), dy.data_ptr(), dweight.data_ptr() if needed[1] else 0, dbias.data_ptr() if needed[2] else 0]
        batch, _, height, width = x.shape
        library.conv_weight_gradient(addresses, [batch, height, width, channels, features, torch.get_num_threads()])
    if needed[1]:
        dweight = dweight.contiguous(memory_format=reference.memory_format(weight))
    return dx, dweight, dbias


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """The kernels read addresses: what they are given must be as large as they believe, whoever calls the op."""
    if x.dim() != 4 or weight.dim() != 4 or weight.shape[1:] != (x.shape[1], 3, 3):
        raise ValueError(f"x is {list(x.shape)}, weight {list(weight.shape)}; [B, C, H, W] and [K, C, 3, 3] are needed")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias is {list(bias.shape)}; [{weight.shape[0]}] is needed")


def _taken(x: Tensor, weight: Tensor, other: Tensor | None) -> bool:
    floats = all(value is None or value.dtype == torch.float32 for value in (x, weight, other))
    return native.native is not None and floats and x.numel() > 0 and weight.numel() > 0


def _pack(weight: Tensor, turned: bool) -> Tensor:
    """The filters as norm_conv multiplies by them, or those of the gradient of x: turned, K for C."""
    if reference.memory_format(weight) == torch.channels_last:
        weight = weight.contiguous(memory_format=torch.channels_last)
    features, channels = weight.shape[:2]
    feature_stride, channel_stride = 9 * channels, 9
    tap_stride = 1
    if not weight.is_contiguous():
        channel_stride, tap_stride = 1, channels
    if turned:
        features, channels = channels, features
        feature_stride, channel_stride = channel_stride, feature_stride
    packed = native.floats(packed_size(features, channels))
    numbers = [channels, features, channel_stride, feature_stride, tap_stride, int(turned), torch.get_num_threads()]
    assert native.native is not None
    native.native.pack_filters(weight.data_ptr(), packed.data_ptr(), numbers)
    return packed


def _convolve(x: Tensor, packed: Tensor, bias: Tensor | None, features: int) -> Tensor:
    """norm_conv without norm: channels_last."""
    batch, channels, height, width = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    bias = None if bias is None else bias.contiguous()
    y = native.floats((batch, features, height, width), torch.channels_last)
    addresses = [x.data_ptr(), 0, 0, 0, packed.data_ptr(), 0 if bias is None else bias.data_ptr(), 0, y.data_ptr(), 0, 0]
    assert native.native is not None
    native.native.norm_conv(addresses, [0, batch, height, width, channels, features, 0, torch.get_num_threads()])
    return y
