"""The 3x3 convolution of training: stride 1, zeros around the map, with its gradients."""

from __future__ import annotations

from torch import Tensor

from fastcond.ops.conv3x3 import eager
from fastcond.ops.conv3x3.op import conv3x3_op


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.conv2d(x, weight, bias, padding=1), on a CPU by Winograd's F(4x4, 3x3) in both directions.

    With g the filters, d a tile of x and dy one of the output's gradient:

        y  = A^T [ (G g G^T) . (B^T d B) ] A                      summed over the channels
        dx = the same of dy, with the filters turned by 180 degrees, input and output exchanged
        dg = G^T [ sum over tiles of (B^T d B) . (A dy A^T) ] G

    Args:
        x: float [B, C, H, W], contiguous or channels_last.
        weight: float [K, C, 3, 3], in either format too.
        bias: float [K]; None stands for 0.
    Returns: [B, K, H, W] of x's dtype, contiguous where x and weight are that and nothing else, channels_last otherwise.
        The CPU kernels take float32 from 16 channels to 16 features on; what is smaller, of another dtype, under autocast, on
        another device or without the native library is F.conv2d itself, which torch.compile sees as such. Their output and
        gradient of x have for an image the same bits in any batch, and no bits depend on the number of threads.
    Raises: ValueError for shapes that do not fit, naming what was found; NotImplementedError for a second derivative of the CPU
        kernels.
    Source: Lavin & Gray 2015, section 4, with Barabasz et al. 2020 on the choice of points.
    """
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(f"x is {x.dtype} {list(x.shape)}; a float tensor [B, C, H, W] is needed")
    if weight.dim() != 4 or weight.shape[1:] != (x.shape[1], 3, 3):
        raise ValueError(
            f"weight has shape {list(weight.shape)}; [K, {x.shape[1]}, 3, 3] is needed for x of shape {list(x.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias has shape {list(bias.shape)}; [{weight.shape[0]}] is needed")
    y = eager.conv3x3(x, weight, bias)
    return conv3x3_op(x, weight, bias) if y is None else y


__all__ = ["conv3x3"]
