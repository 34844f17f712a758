"""A linear layer of many tokens, by the fastest product of matrices that PyTorch has on the device."""

from __future__ import annotations

from torch import Tensor

from fastcond.ops.linear.op import linear_op


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear(x, weight, bias): y = x weight^T + bias, with its gradients.

    Args:
        x: float [B, tokens, C]. weight: float [K, C]. bias: float [K]; None stands for 0.
    Returns: [B, tokens, K] of x's dtype. On a CPU, float32 runs as a convolution of 1x1, for which PyTorch calls oneDNN:
        F.linear calls MKL, which has no AVX-512 for processors of other makers and takes twice as long there. Few tokens,
        another dtype, autocast or another device give F.linear itself.
    Raises: ValueError for shapes that do not fit, naming what was found.
    """
    if x.dim() != 3 or not x.is_floating_point():
        raise ValueError(f"x is {x.dtype} {list(x.shape)}; a float tensor [B, tokens, C] is needed")
    if weight.dim() != 2 or weight.shape[1] != x.shape[2]:
        raise ValueError(f"weight has shape {list(weight.shape)}; [K, {x.shape[2]}] is needed for x of shape {list(x.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias has shape {list(bias.shape)}; [{weight.shape[0]}] is needed")
    return linear_op(x, weight, bias)


__all__ = ["linear"]
