"""A `ConditionalUNet` as a sequence of a few operations, for its inference forms: one walk, whoever executes it.

What the embedding says is known before the loop, so an operation names a `Site` of the `ConditioningTable` where a module of the
network would compute a scale, a shift or a bias.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar, cast

from torch import Tensor, nn

from fastcond.engine.conditioning_table import Site, conditioning_sites
from fastcond.nn import AdaGroupNorm, ConditionalUNet
from fastcond.nn.blocks import Downsample, FusedGroupNorm, ResnetBlock, SelfAttention, Upsample
from fastcond.nn.label_attention import LabelTransformer, TransformerBlock
from fastcond.nn.skip_blocks import SkipDownBlock, SkipUpBlock

Map = TypeVar("Map")


@dataclass(frozen=True)
class Norm:
    """A group norm before an operation: groups, eps, affine parameters [C] or None, the site of scale and shift or None, SiLU."""

    groups: int
    eps: float
    weight: Tensor | None
    bias: Tensor | None
    site: Site | None
    silu: bool


class Operations(Protocol[Map]):
    """What executes a walk. A map is whatever stands for [B, C, H, W] there."""

    def convolve(
        self,
        conv: nn.Conv2d,
        x: Map,
        *,
        norm: Norm | None = None,
        upsampled: bool = False,
        site: Site | None = None,
        residual: Map | None = None,
        divisor: float = 1.0,
    ) -> Map:
        """(conv(act(norm(x))) + the site's bias + residual) / divisor; act(norm(x)) is doubled (nearest) first if `upsampled`."""
        ...

    def attend(self, attention: SelfAttention, x: Map, norm: Norm | None) -> Map:
        """x + attention over the positions of norm(x), over the attention's divisor."""
        ...

    def transform(self, transformer: LabelTransformer, x: Map, sites: Sequence[Site]) -> Map:
        """transformer(x), where a site's bias is what cross-attention adds in each of its blocks."""
        ...

    def join(self, x: Map, skip: Map) -> Map:
        """Channels of x, then of skip."""
        ...

    def resample(self, x: Map, how: Literal["down", "up"], norm: Norm | None = None, kernel: Tensor | None = None) -> Map:
        """act(norm(x)) averaged over squares of 2x2 ("down"), or doubled by nearest neighbours ("up"); either through a
        `FirFilter`'s kernel where there is one.
        """
        ...


class Walk:
    """The operations of a network, in order.

    Args: model: its modules and parameters are handed to whoever executes; nothing is copied.
    Raises: TypeError for a network with a module that this walk does not know.
    """

    def __init__(self, model: ConditionalUNet) -> None:
        self.model, self.sites = model, conditioning_sites(model)
        self._site_of = {id(model.get_submodule(site.name)): site for site in self.sites}

    def __call__(self, operations: Operations[Map], x_t: Map) -> Map:
        """The network's output for x_t."""
        model = self.model
        x = operations.convolve(model.conv_in, x_t)
        skips, image = [x], x_t
        for block in model.down_blocks:
            for module in _in_order(block):
                x = self._step(operations, module, x)
                if not _is_followed_by_attention(block, module):
                    skips.append(x)
            if isinstance(block, SkipDownBlock) and block.resamples:
                image = operations.resample(image, "down", kernel=block.filter.kernel)
                x = operations.convolve(block.skip_conv, image, residual=self._residual_block(operations, block.resnet_down, x))
                skips.append(x)
        if model.mid_block is not None:
            first, second = model.mid_block.resnets
            for module in (first, *getattr(model.mid_block, "attentions", ()), second):
                x = self._step(operations, module, x)
        drawn: Map | None = None
        for block in model.up_blocks:
            for module in _in_order(block):
                takes_skip = any(module is resnet for resnet in cast(nn.ModuleList, block.resnets))
                x = self._step(operations, module, operations.join(x, skips.pop()) if takes_skip else x)
            if isinstance(block, SkipUpBlock):
                if drawn is not None:
                    drawn = operations.resample(drawn, "up", kernel=block.filter.kernel)
                if block.resamples:
                    drawn = operations.convolve(block.skip_conv, x, norm=self._norm(block.skip_norm), residual=drawn)
                    x = self._residual_block(operations, block.resnet_up, x)
        return operations.convolve(model.conv_out, x, norm=self._norm(model.conv_norm_out), residual=drawn)

    def _step(self, operations: Operations[Map], module: nn.Module, x: Map) -> Map:
        if isinstance(module, ResnetBlock):
            return self._residual_block(operations, module, x)
        if isinstance(module, SelfAttention):
            norm = None if module.group_norm is None else self._norm(module.group_norm)
            return operations.attend(module, x, norm)
        if isinstance(module, LabelTransformer):
            blocks = cast(Iterable[TransformerBlock], module.transformer_blocks)
            return operations.transform(module, x, [self._site_of[id(block.attn2)] for block in blocks])
        if isinstance(module, Downsample):
            return operations.convolve(module.conv, x)
        if isinstance(module, Upsample):
            return operations.convolve(module.conv, x, upsampled=True)
        raise TypeError(f"a network with a {type(module).__name__} has no inference form")

    def _residual_block(self, operations: Operations[Map], block: ResnetBlock, x: Map) -> Map:
        norm1, norm2 = self._norm(block.norm1), self._norm(block.norm2)
        site = None
        if block.conditioning != "adagn":
            site = self._site_of[id(block.time_emb_proj)]
            if block.conditioning == "scale_shift":
                norm2, site = Norm(norm2.groups, norm2.eps, norm2.weight, norm2.bias, site, norm2.silu), None
        kernel = None if block.filter is None else block.filter.kernel
        if block.resampling is not None and (block.resampling == "down" or kernel is not None):
            h = operations.convolve(block.conv1, operations.resample(x, block.resampling, norm1, kernel), site=site)
        else:
            h = operations.convolve(block.conv1, x, norm=norm1, upsampled=block.resampling == "up", site=site)
        if block.resampling is not None:
            x = operations.resample(x, block.resampling, kernel=kernel)
        if block.conv_shortcut is not None:
            x = operations.convolve(block.conv_shortcut, x)
        return operations.convolve(block.conv2, h, norm=norm2, residual=x, divisor=block.divisor)

    def _norm(self, module: nn.Module) -> Norm:
        if isinstance(module, AdaGroupNorm):
            site = self._site_of[id(module.linear)]
            return Norm(module.num_groups, module.eps, None, None, site, module.activation == "silu")
        assert isinstance(module, FusedGroupNorm), "the norms of a network are these two"
        return Norm(module.num_groups, module.eps, module.weight, module.bias, None, module.activation == "silu")


def _in_order(block: nn.Module) -> Iterator[nn.Module]:
    """The modules of a level, each of its last residual blocks with the attention after it, then the resampling ones."""
    resnets, attentions = cast(nn.ModuleList, block.resnets), getattr(block, "attentions", ())
    for i, resnet in enumerate(resnets, len(attentions) - len(resnets)):
        yield resnet
        if i >= 0:
            yield attentions[i]
    yield from getattr(block, "downsamplers", ())
    yield from getattr(block, "upsamplers", ())


def _is_followed_by_attention(block: nn.Module, module: nn.Module) -> bool:
    return hasattr(block, "attentions") and any(module is resnet for resnet in cast(nn.ModuleList, block.resnets))
