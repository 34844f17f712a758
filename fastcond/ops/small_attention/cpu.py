"""The native CPU kernel's launcher, for float32. Other dtypes, and all where there is no library, run the reference.

The kernel works channels_last: maps of another layout are copied into that, and y back.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastcond.ops import native
from fastcond.ops.small_attention import reference


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
    """`reference.forward`, natively where the kernel takes x."""
    _check(x, (mean, gain, offset), (qkv_weight, qkv_bias, out_weight, out_bias), packed, residual, heads)
    library = native.native
    if library is None or x.dtype != torch.float32 or x.numel() == 0:
        weights = qkv_weight, qkv_bias, out_weight, out_bias
        return reference.forward(x, mean, gain, offset, *weights, packed, residual, heads)
    batch, channels, height, width = x.shape
    packed = reference.pack(qkv_weight, out_weight) if packed is None else packed.contiguous()
    layout = reference.memory_format(x)
    x = x.contiguous(memory_format=torch.channels_last)
    y = native.floats((batch, channels, height, width), torch.channels_last)
    # Held until the call returns: some are copies, made because the kernel reads rows of float32 without gaps.
    norm = [None if value is None else value.float().contiguous() for value in (mean, gain, offset)]
    biases = [None if value is None else value.float().contiguous() for value in (qkv_bias, out_bias)]
    if residual is not None:
        residual = residual.float().contiguous(memory_format=torch.channels_last)
    operands = [x, *norm, packed, *biases, residual, y]
    addresses = [0 if value is None else value.data_ptr() for value in operands]
    library.small_attention(addresses, [batch, height * width, channels, heads, torch.get_num_threads()])
    return y.contiguous(memory_format=layout)


def _check(
    x: Tensor,
    norm: tuple[Tensor | None, ...],
    weights: tuple[Tensor | None, ...],
    packed: Tensor | None,
    residual: Tensor | None,
    heads: int,
) -> None:
    """The kernel reads addresses: what it is given must be as large as it believes, whoever calls the op."""
    if x.dim() != 4 or heads < 1 or x.shape[1] % heads:
        raise ValueError(f"x is {list(x.shape)} for {heads} heads; [B, C, H, W] with C a multiple of the heads is needed")
    channels = x.shape[1]
    given = [value for value in norm if value is not None]
    if len(given) not in (0, 3) or any(value.shape != x.shape[:2] for value in given):
        found = [list(value.shape) for value in given]
        raise ValueError(f"mean, gain, offset are {found}; none or all {list(x.shape[:2])} are needed")
    needed = [(3 * channels, channels), (3 * channels,), (channels, channels), (channels,)]
    for name, value, shape in zip(("qkv_weight", "qkv_bias", "out_weight", "out_bias"), weights, needed, strict=True):
        if value is not None and value.shape != shape:
            raise ValueError(f"{name} is {list(value.shape)}; {list(shape)} is needed for x {list(x.shape)}")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"residual is {list(residual.shape)} for x {list(x.shape)}")
    size = reference.packed_size(channels)
    if packed is not None and (packed.dtype != torch.float32 or packed.shape != (size,)):
        raise ValueError(f"packed is {packed.dtype} {list(packed.shape)}; pack_attention_weights gives float32 [{size}]")
