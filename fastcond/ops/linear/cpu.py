"""The native CPU kernels' launchers, for float32. Weights are packed at every call, which costs little beside the product."""

from __future__ import annotations

import torch
from torch import Tensor

from fastcond.ops import native
from fastcond.ops.linear import reference
from fastcond.ops.packing import padded

# Channels and features that fill a register; and products of an image, with fewer of which a call costs more than they do
# (benchmarks/bench_linear.py). Of one image, so that its bits are the same in any batch.
LEAST_CHANNELS, LEAST_PRODUCTS = 16, 1 << 17


def is_faster(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the kernels take the operands and pay."""
    if native.native is None or any(value is not None and value.dtype != torch.float32 for value in (x, weight, bias)):
        return False
    return x.dim() == 3 and _fits(weight) and x.numel() > 0 and x.shape[1] * weight.numel() >= LEAST_PRODUCTS


def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`reference.native_forward`, natively where the kernels take x."""
    _check(x, weight, bias)
    if not _taken(x, weight, bias):
        return reference.native_forward(x, weight, bias)
    return _multiply(x.contiguous(), weight, False, bias)


def backward(dy: Tensor, x: Tensor, weight: Tensor, needed: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """`reference.native_backward`, natively where the kernels take x."""
    _check(x, weight, None)
    features, channels = weight.shape
    if dy.shape != (*x.shape[:2], features):
        raise ValueError(f"dy is {list(dy.shape)} for {features} features of x {list(x.shape)}")
    if not _taken(x, weight, dy):
        return reference.native_backward(dy, x, weight, needed)
    dy = dy.contiguous()
    dx = _multiply(dy, weight, True, None) if needed[0] else native.floats(0)
    dweight = native.floats((features, channels) if needed[1] else 0)
    dbias = native.floats(features if needed[2] else 0)
    if needed[1] or needed[2]:
        x = x.contiguous()
        addresses = [x.data_ptr(), dy.data_ptr(), dweight.data_ptr() if needed[1] else 0, dbias.data_ptr() if needed[2] else 0]
        library = native.native
        assert library is not None
        library.linear_gradient(addresses, [x.shape[0] * x.shape[1], channels, features, torch.get_num_threads()])
    return dx, dweight, dbias


def _fits(weight: Tensor) -> bool:
    """The gradient of the weight reads whole registers of channels."""
    return weight.dim() == 2 and weight.shape[1] % 16 == 0 and min(weight.shape) >= LEAST_CHANNELS


def _taken(x: Tensor, weight: Tensor, other: Tensor | None) -> bool:
    floats = all(value is None or value.dtype == torch.float32 for value in (x, weight, other))
    return native.native is not None and floats and x.numel() > 0 and _fits(weight)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """The kernels read addresses: what they are given must be as large as they believe, whoever calls the op."""
    if x.dim() != 3 or weight.dim() != 2 or weight.shape[1] != x.shape[2]:
        raise ValueError(f"x is {list(x.shape)}, weight {list(weight.shape)}; [B, tokens, C] and [K, C] are needed")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias is {list(bias.shape)}; [{weight.shape[0]}] is needed")


def pack(weight: Tensor, *, turned: bool) -> Tensor:
    """`packing.pack_matrix` of a float32 weight [K, C], or, turned, of its transpose."""
    (features, terms), (feature_stride, term_stride) = weight.shape, weight.stride()
    if turned:
        features, terms, feature_stride, term_stride = terms, features, term_stride, feature_stride
    packed, library = native.floats(padded(features) * terms), native.native
    assert library is not None
    numbers = [terms, features, term_stride, feature_stride, torch.get_num_threads()]
    library.pack_matrix(weight.data_ptr(), packed.data_ptr(), numbers)
    return packed


def _multiply(x: Tensor, weight: Tensor, turned: bool, bias: Tensor | None) -> Tensor:
    """x times the weight's rows, or, turned, its columns; plus bias."""
    packed, library = pack(weight, turned=turned), native.native
    assert library is not None
    terms, features = x.shape[2], weight.shape[1] if turned else weight.shape[0]
    batch, tokens = x.shape[:2]
    y = native.floats((batch, tokens, features))
    bias = None if bias is None else bias.contiguous()
    addresses = [x.data_ptr(), packed.data_ptr(), 0 if bias is None else bias.data_ptr(), y.data_ptr()]
    library.linear(addresses, [batch * tokens, terms, features, torch.get_num_threads()])
    return y
