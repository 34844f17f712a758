"""Attention between the tokens of an image, as training needs it: with its gradients, and on a CPU in one pass."""

from __future__ import annotations

from torch import Tensor

from fastcond.ops.token_attention import eager
from fastcond.ops.token_attention.op import token_attention_op


def token_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v of each head, d = C / heads.

    With P the softmax and dy the gradient of y: dv = P^T dy, dS = P (dy v^T - sum over d of dy y), dq = dS k / sqrt(d),
    dk = dS^T q / sqrt(d).

    Args:
        q, k, v: float [B, tokens, C], the channels heads one after another; views of one larger tensor are read in place.
        heads: a divisor of C.
    Returns: [B, tokens, C] of q's dtype. The CPU kernels take float32; another dtype, autocast, another device, or no native
        library give F.scaled_dot_product_attention itself, which torch.compile sees as such. No bit of the kernels' results
        depends on the rest of the batch or the number of threads.
    Raises: ValueError for shapes that do not fit, naming what was found; NotImplementedError for a second derivative of the CPU
        kernels.
    Source: Vaswani et al. 2017, eq. 1; the backward pass from the softmax's sums alone is Dao et al. 2022, appendix B.2.
    """
    if q.dim() != 3 or not q.is_floating_point():
        raise ValueError(f"q is {q.dtype} {list(q.shape)}; a float tensor [B, tokens, C] is needed")
    if k.shape != q.shape or v.shape != q.shape:
        raise ValueError(f"k and v have shapes {list(k.shape)} and {list(v.shape)}; both must have q's, {list(q.shape)}")
    if heads < 1 or q.shape[2] % heads:
        raise ValueError(f"heads is {heads}; a divisor of {q.shape[2]} channels is needed")
    y = eager.token_attention(q, k, v, heads)
    return token_attention_op(q, k, v, heads) if y is None else y


__all__ = ["token_attention"]
