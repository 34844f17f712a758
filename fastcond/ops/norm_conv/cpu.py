"""The native CPU kernel's launchers, for float32. Other dtypes, and all where there is no library, run the reference.

The kernel works channels_last: maps of another layout are copied into that, and y back.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastcond.ops import native
from fastcond.ops.norm_conv import reference


def forward(
    x: Tensor,
    mean: Tensor | None,
    gain: Tensor | None,
    offset: Tensor | None,
    weight: Tensor,
    packed: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    silu: bool,
    statistics: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """`reference.forward`, natively where the kernel takes x."""
    _check(x, mean, gain, offset, weight, packed, bias, residual)
    library = native.native
    if library is None or x.dtype != torch.float32 or x.numel() == 0 or weight.numel() == 0:
        return reference.forward(x, mean, gain, offset, weight, packed, bias, residual, silu, statistics)
    batch, channels, height, width = x.shape
    features = weight.shape[0]
    packed = pack(weight) if packed is None else packed.contiguous()
    layout = reference.memory_format(x)
    x = x.contiguous(memory_format=torch.channels_last)
    y = native.floats((batch, features, height, width), torch.channels_last)
    y_mean = native.floats((batch, features) if statistics else 0)
    y_m2 = torch.empty_like(y_mean)
    bias_stride = features if bias is not None and bias.dim() == 2 else 0
    # Held until the call returns: some are copies, made because the kernel reads rows of float32 without gaps.
    of_channels = [None if value is None else value.float().contiguous() for value in (mean, gain, offset, bias)]
    if residual is not None:
        residual = residual.float().contiguous(memory_format=torch.channels_last)
    operands = [x, *of_channels[:3], packed, of_channels[3], residual, y]
    addresses = [0 if value is None else value.data_ptr() for value in operands]
    addresses += [y_mean.data_ptr(), y_m2.data_ptr()] if statistics else [0, 0]
    sizes = [bias_stride, batch, height, width, channels, features, int(silu), torch.get_num_threads()]
    library.norm_conv(addresses, sizes)
    return y.contiguous(memory_format=layout), y_mean, y_m2


def pack(weight: Tensor) -> Tensor:
    """`reference.pack`, natively where there is a library."""
    if weight.dim() != 4 or weight.shape[2:] != (3, 3):
        raise ValueError(f"weight is {list(weight.shape)}; [K, C, 3, 3] is needed")
    library = native.native
    if library is None or weight.dtype == torch.float64 or weight.numel() == 0:
        return reference.pack(weight)
    weight = weight.float().contiguous()
    features, channels = weight.shape[:2]
    packed = native.floats(reference.packed_size(features, channels))
    library.pack_conv_weight(weight.data_ptr(), packed.data_ptr(), channels, features, torch.get_num_threads())
    return packed


def _check(
    x: Tensor,
    mean: Tensor | None,
    gain: Tensor | None,
    offset: Tensor | None,
    weight: Tensor,
    packed: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
) -> None:
    """The kernel reads addresses: what it is given must be as large as it believes, whoever calls the op."""
    if x.dim() != 4 or weight.dim() != 4 or weight.shape[1:] != (x.shape[1], 3, 3):
        raise ValueError(f"x is {list(x.shape)}, weight {list(weight.shape)}; [B, C, H, W] and [K, C, 3, 3] are needed")
    of_image = x.shape[:2]
    norm = [value for value in (mean, gain, offset) if value is not None]
    if len(norm) not in (0, 3) or any(value.shape != of_image for value in norm):
        found = [list(value.shape) for value in norm]
        raise ValueError(f"mean, gain, offset are {found}; none or all {list(of_image)} are needed")
    features = weight.shape[0]
    if bias is not None and bias.shape not in ((features,), (x.shape[0], features)):
        raise ValueError(f"bias is {list(bias.shape)}; [{features}] or [{x.shape[0]}, {features}] is needed")
    if residual is not None and residual.shape != (x.shape[0], features, *x.shape[2:]):
        raise ValueError(f"residual is {list(residual.shape)} for {features} features of x {list(x.shape)}")
    size = reference.packed_size(features, x.shape[1])
    if packed is not None and (packed.dtype != torch.float32 or packed.shape != (size,)):
        raise ValueError(f"packed is {packed.dtype} {list(packed.shape)}; pack_conv_weight(weight) is float32 [{size}]")
