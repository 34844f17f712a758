"""A linear layer of many tokens, as training needs it: with its gradients, on a CPU by our own products of matrices."""

from __future__ import annotations

from torch import Tensor

from fastcond.ops.linear import eager
from fastcond.ops.linear.op import linear_op


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear(x, weight, bias): y = x weight^T + bias, with its gradients dx = dy weight, dweight = dy^T x, dbias = sum of dy.

    Args:
        x: float [B, tokens, C]. weight: float [K, C]. bias: float [K]; None stands for 0.
    Returns: [B, tokens, K] of x's dtype, contiguous. The CPU kernels take float32, channels in sixteens and features from 16 on;
        few tokens, other channels, another dtype, autocast, another device or no native library give F.linear itself, which
        torch.compile sees as such. No bit of the kernels' results depends on the number of threads, and none of a row of y or
        dx on the other rows.
    Raises: ValueError for shapes that do not fit, naming what was found; NotImplementedError for a second derivative of the CPU
        kernels.
    """
    if x.dim() != 3 or not x.is_floating_point():
        raise ValueError(f"x is {x.dtype} {list(x.shape)}; a float tensor [B, tokens, C] is needed")
    if weight.dim() != 2 or weight.shape[1] != x.shape[2]:
        raise ValueError(f"weight has shape {list(weight.shape)}; [K, {x.shape[2]}] is needed for x of shape {list(x.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias has shape {list(bias.shape)}; [{weight.shape[0]}] is needed")
    y = eager.linear(x, weight, bias)
    return linear_op(x, weight, bias) if y is None else y


__all__ = ["linear"]
