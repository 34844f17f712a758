"""What the native steps of a network multiply by, made of its modules' weights."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fastcond.nn.blocks import SelfAttention
from fastcond.nn.label_attention import TokenAttention
from fastcond.ops.norm_conv import pack_conv_weight
from fastcond.ops.norm_conv.upsampled import pack_upsampled_conv_weight
from fastcond.ops.packing import pack_matrix
from fastcond.ops.small_attention import pack_attention_weights


@dataclass
class PackedWeights:
    """What the steps of a network multiply by, by the module that it was made of. It is the weights as they were then."""

    of: dict[nn.Module, Tensor] = field(default_factory=dict)
    phased: dict[nn.Module, Tensor] = field(default_factory=dict)  # of convolutions of doubled maps

    def of_linear(self, linear: nn.Module, before: nn.LayerNorm | None = None) -> tuple[Tensor, Tensor]:
        """Weight and bias of a Linear or a 1x1 convolution, and in them the affine map of the layer norm before it."""
        weight, bias = linear.get_parameter("weight").detach().flatten(1), linear.get_parameter("bias").detach()
        if before is not None:
            weight, bias = _behind(before, weight, bias)
        if linear not in self.of:
            self.of[linear] = pack_matrix(weight)
        return self.of[linear], bias

    def of_token_attention(self, attention: TokenAttention, before: nn.LayerNorm) -> tuple[Tensor, Tensor]:
        """As `of_attention`, with the layer norm before it."""
        weight = torch.cat([p.weight.detach() for p in (attention.to_q, attention.to_k, attention.to_v)])
        weight, bias = _behind(before, weight, weight.new_zeros(len(weight)))
        if attention not in self.of:
            self.of[attention] = pack_attention_weights(weight, attention.to_out[0].get_parameter("weight").detach())
        return self.of[attention], bias

    def of_conv(self, conv: nn.Conv2d, winograd: bool, phased: bool) -> Tensor:
        weight = conv.weight.detach()
        if phased:
            if conv not in self.phased:
                self.phased[conv] = pack_upsampled_conv_weight(weight)
            return self.phased[conv]
        if conv not in self.of:
            self.of[conv] = pack_conv_weight(weight) if winograd else pack_matrix(weight.permute(0, 2, 3, 1).flatten(1))
        return self.of[conv]

    def of_attention(self, attention: SelfAttention) -> tuple[Tensor, Tensor]:
        """The weights, and the biases of queries, keys and values."""
        projections = (attention.to_q, attention.to_k, attention.to_v)
        if attention not in self.of:
            qkv = torch.cat([projection.weight.detach() for projection in projections])
            self.of[attention] = pack_attention_weights(qkv, attention.to_out[0].get_parameter("weight").detach())
            self.of[attention.to_q] = torch.cat([projection.bias.detach() for projection in projections])
        return self.of[attention], self.of[attention.to_q]


def _behind(norm: nn.LayerNorm, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """weight (norm.weight x + norm.bias) + bias as one affine map of x."""
    return weight * norm.weight.detach(), bias + weight @ norm.bias.detach()
