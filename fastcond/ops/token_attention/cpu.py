"""The native CPU kernels' launchers, for float32. Other dtypes, and all where there is no library, run the reference."""

from __future__ import annotations

import torch
from torch import Tensor

from fastcond.ops import native
from fastcond.ops.token_attention import reference


def are_taken(*operands: Tensor) -> bool:
    """Whether the kernels take the operands; where they do, they are faster at any size (benchmarks/bench_token_attention.py)."""
    return native.native is not None and all(value.dtype == torch.float32 for value in operands)


def forward(q: Tensor, k: Tensor, v: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """`reference.native_forward`, natively where the kernels take q."""
    _check(q, k, v, heads)
    library = native.native
    if library is None or not are_taken(q, k, v) or q.numel() == 0:
        return reference.native_forward(q, k, v, heads)
    batch, tokens, channels = q.shape
    y, softmax = native.floats((batch, tokens, channels)), native.floats((batch, heads, 2, tokens))
    q, k, v = _rows(q), _rows(k), _rows(v)
    addresses = [q.data_ptr(), k.data_ptr(), v.data_ptr(), y.data_ptr(), softmax.data_ptr(), 0, 0, 0, 0]
    sizes = [q.stride(1), k.stride(1), v.stride(1), batch, tokens, channels, heads, torch.get_num_threads()]
    library.token_attention(addresses, sizes)
    return y, softmax


def backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, softmax: Tensor, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`reference.native_backward`, natively where the kernels take q."""
    _check(q, k, v, heads)
    batch, tokens, channels = q.shape
    if dy.shape != q.shape or y.shape != q.shape or softmax.shape != (batch, heads, 2, tokens):
        raise ValueError(f"dy, y, softmax are {list(dy.shape)}, {list(y.shape)}, {list(softmax.shape)} for q {list(q.shape)}")
    library = native.native
    if library is None or not are_taken(dy, q, k, v, y, softmax) or q.numel() == 0:
        return reference.native_backward(dy, q, k, v, y, softmax, heads)
    q, k, v = _rows(q), _rows(k), _rows(v)
    dy, y, softmax = dy.contiguous(), y.contiguous(), softmax.contiguous()
    grads = native.floats(q.shape), native.floats(q.shape), native.floats(q.shape)
    addresses = [value.data_ptr() for value in (q, k, v, y, softmax, dy, *grads)]
    sizes = [q.stride(1), k.stride(1), v.stride(1), batch, tokens, channels, heads, torch.get_num_threads()]
    library.token_attention(addresses, sizes)
    return grads


def _check(q: Tensor, k: Tensor, v: Tensor, heads: int) -> None:
    """The kernels read addresses: what they are given must be as large as they believe, whoever calls the op."""
    if q.dim() != 3 or k.shape != q.shape or v.shape != q.shape:
        raise ValueError(f"q, k, v are {list(q.shape)}, {list(k.shape)}, {list(v.shape)}; three of [B, tokens, C] are needed")
    if heads < 1 or q.shape[2] % heads:
        raise ValueError(f"{q.shape[2]} channels cannot be divided into {heads} heads")


def _rows(value: Tensor) -> Tensor:
    """Channels side by side, and one distance from token to token, also over the end of an image."""
    batch_stride, token_stride, channel_stride = value.stride()
    if channel_stride == 1 and token_stride >= value.shape[2] and batch_stride == value.shape[1] * token_stride:
        return value
    return value.contiguous()
