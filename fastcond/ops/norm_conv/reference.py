"""norm_conv in plain PyTorch: the definition of correct, for every device and float dtype.

    y = conv3x3(act((x - mean) gain + offset), weight) + bias + residual

Arithmetic is fp32 (fp64 for fp64).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 32  # features of a block of a packed weight
LEAST = 16  # of the last block, where no more are left

# The points of Winograd's F(4x4, 3x3), beside 0 and infinity: +-A, +-B (kernels/cpu/norm_conv_points.h).
A, B = 0.75, 1.5


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
    """Returns (y like x, y's mean [B, K], y's sum of squared distances to it [B, K]), the last two empty unless `statistics`.

    `packed` is another form of `weight` and not read here.
    """
    wide = statistics_dtype(x)
    h = x.to(wide)
    if mean is not None and gain is not None and offset is not None:
        h = (h - _of_channel(mean, wide)) * _of_channel(gain, wide) + _of_channel(offset, wide)
    if silu:
        h = F.silu(h)
    y = F.conv2d(h, weight.to(wide), padding=1)
    if bias is not None:
        y = y + _of_channel(bias if bias.dim() == 2 else bias[None], wide)
    if residual is not None:
        y = y + residual.to(wide)
    y_mean, m2 = x.new_empty(0, dtype=wide), x.new_empty(0, dtype=wide)
    if statistics:
        # The mean is taken of the distance to one position, so that no digits are lost where it is large beside the spread.
        distance = y - y[:, :, :1, :1]
        mean_distance = distance.mean(dim=(2, 3))
        m2 = (distance - mean_distance[:, :, None, None]).square().sum(dim=(2, 3))
        y_mean = y[:, :, 0, 0] + mean_distance
    return y.to(x.dtype).contiguous(memory_format=memory_format(x)), y_mean, m2


def pack(weight: Tensor) -> Tensor:
    """weight [K, C, 3, 3] as Winograd's F(4x4, 3x3) multiplies by it: a float32 vector of blocks [36, C, 32 features].

    The last block is of 16 features where no more are left; features that are not there are 0.
    Source: Lavin & Gray 2015, section 4.1: G g G^T.
    """
    features, channels = weight.shape[:2]
    G = _filter_transform().to(weight.device)
    U = (G @ weight.double() @ G.T).permute(2, 3, 1, 0).reshape(36, channels, features).float()
    blocks = []
    for block in U.split(BLOCK, dim=2):
        width = BLOCK if block.shape[2] > LEAST else LEAST
        blocks.append(F.pad(block, (0, width - block.shape[2])).flatten())
    return torch.cat(blocks) if blocks else U.flatten()


def packed_size(features: int, channels: int) -> int:
    """Elements of a packed weight."""
    return 36 * channels * (-(-features // LEAST) * LEAST)


def memory_format(x: Tensor) -> torch.memory_format:
    """y's: contiguous for an x that is that and nothing else, channels_last otherwise."""
    only_contiguous = x.is_contiguous() and not x.is_contiguous(memory_format=torch.channels_last)
    return torch.contiguous_format if only_contiguous else torch.channels_last


def statistics_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _of_channel(value: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, C] beside a map [B, C, H, W]."""
    return value.to(dtype)[:, :, None, None]


def _filter_transform() -> Tensor:
    """G of F(4, 3), [6, 3] in float64: (1, p, p^2) / m'(p), m(x) = x (x^2 - A^2) (x^2 - B^2), and infinity's row."""
    rows = [[1.0 / (A * A * B * B), 0.0, 0.0]]
    for point, other in ((A, B), (B, A)):
        slope = 2 * point**2 * (point**2 - other**2)
        rows += [[1 / slope, sign * point / slope, point**2 / slope] for sign in (1, -1)]
    return torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64)
