"""The ops that the hardware executes: each is declared once with its reference, and a kernel per device stands beside it."""

from fastcond.ops.ada_group_norm import ada_group_norm
from fastcond.ops.conv3x3 import conv3x3
from fastcond.ops.diffusion_step import diffusion_step
from fastcond.ops.linear import linear
from fastcond.ops.norm_conv import norm_conv, pack_conv_weight
from fastcond.ops.philox import philox_bits, philox_normal
from fastcond.ops.small_attention import pack_attention_weights, small_attention
from fastcond.ops.token_attention import token_attention

__all__ = [
    "ada_group_norm",
    "conv3x3",
    "diffusion_step",
    "linear",
    "norm_conv",
    "pack_attention_weights",
    "pack_conv_weight",
    "philox_bits",
    "philox_normal",
    "small_attention",
    "token_attention",
]
