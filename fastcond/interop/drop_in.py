"""The fused norm in networks that diffusers built.

A layer is changed by giving it another class, a subclass of its own, as PyTorch's parametrizations and FSDP do: parameters, hooks
and names stay where they are, a copy is of the new class too, and what asks by isinstance or by class name gets the answer it
got before. diffusers is recognised by the names of its classes and never imported.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from torch import Tensor, nn

from fastcond.ops import ada_group_norm

Model = TypeVar("Model", bound=nn.Module)

# What the fused block reads of a ResnetBlock2D.
_BLOCK_PARTS = (
    "norm1 norm2 conv1 conv2 dropout nonlinearity time_emb_proj time_embedding_norm skip_time_act upsample downsample "
    "conv_shortcut output_scale_factor"
).split()
# From this batch size on, diffusers upsamples contiguous maps only.
_LARGE_BATCH = 64


def accelerate(module: Model) -> Model:
    """Put the fused norm into a diffusers UNet2DModel or UNet2DConditionModel, in place.

    `fastcond.ops.ada_group_norm` takes over, in each ResnetBlock2D, norm1 and norm2 with the scale and shift and the SiLU that
    follow; the model's conv_norm_out with its SiLU (conv_act becomes the identity); the group norms of attention. All else is
    left alone: blocks with another activation, ResnetBlockCondNorm2D, subclasses with a forward of their own, and layers whose
    forward was replaced, as offloading does: accelerate first, offload afterwards.

    Args: module: such a model, or any module that contains its blocks.
    Returns: the same module, with the same parameters under the same names. It computes what it did but for rounding, has first
        derivatives only, and can be trained, copied, moved, compiled and saved as before; `from_pretrained` then gives back
        diffusers' own layers. Accelerating again changes nothing.
    Raises: TypeError where `module` is no nn.Module; ValueError where it has no such norm.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module is {type(module).__name__}; a torch.nn.Module is needed, such as a diffusers UNet2DModel")
    found = False
    for part in module.modules():
        if isinstance(part, FusedNorm):
            found = True
        elif _runs_forward_of(part, "ResnetBlock2D"):
            found |= _fuse_block(part)
        elif _runs_forward_of(part, "UNet2DModel", "UNet2DConditionModel"):
            if type(getattr(part, "conv_act", None)) is nn.SiLU and _fuse_norm(part.conv_norm_out, "silu"):
                part.conv_act = nn.Identity()
                found = True
        elif _runs_forward_of(part, "Attention"):
            found |= _fuse_norm(part.group_norm)
        elif _runs_forward_of(part, "Transformer2DModel"):
            found |= _fuse_norm(getattr(part, "norm", None))
    if not found:
        raise ValueError(f"{type(module).__name__} has no norm to accelerate; a UNet2DModel or UNet2DConditionModel is needed")
    return module


class FusedNorm(nn.GroupNorm):
    """nn.GroupNorm through `ada_group_norm`, which also takes what follows it: a scale and shift, and a SiLU."""

    activation: Literal["silu"] | None = None  # where a call names none

    def forward(
        self,
        input: Tensor,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        activation: Literal["silu"] | None = None,
    ) -> Tensor:
        """input [B, C, *], scale and shift [B, C] -> input's shape, dtype and memory format."""
        # Attention hands over [B, C, HW], a transposed view where maps are channels_last: with a fourth axis it is one again.
        x = input.unsqueeze(3) if input.dim() == 3 else input
        y = ada_group_norm(
            x,
            scale,
            shift,
            self.num_groups,
            weight=self.weight,
            bias=self.bias,
            eps=self.eps,
            activation=activation or self.activation,
        )
        return y.squeeze(3) if input.dim() == 3 else y


class FusedResnetBlock(nn.Module):
    """The forward of diffusers' ResnetBlock2D, its norms fused with what follows them; `_fused_class` adds the original.

    input_tensor [B, C_in, H, W], temb [B, D] -> [B, C_out, H', W'].
    """

    norm1: FusedNorm
    norm2: FusedNorm
    conv1: nn.Module
    conv2: nn.Module
    dropout: nn.Module
    nonlinearity: nn.SiLU
    time_emb_proj: nn.Module | None
    conv_shortcut: nn.Module | None
    upsample: Any
    downsample: Any
    time_embedding_norm: str
    skip_time_act: bool
    output_scale_factor: float

    def forward(self, input_tensor: Tensor, temb: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        modulated = self.time_embedding_norm == "scale_shift"
        usual = (temb is None) == (self.time_emb_proj is None) and not (modulated and temb is None)
        if args or kwargs or not usual:
            # Deprecated or refused, which diffusers says in its own words. Its forward is right here too, only slower.
            return super().forward(input_tensor, temb, *args, **kwargs)
        x, h = input_tensor, self.norm1(input_tensor, activation="silu")
        resample = self.downsample if self.upsample is None else self.upsample
        if resample is not None:
            if self.upsample is not None and h.shape[0] >= _LARGE_BATCH:
                x, h = x.contiguous(), h.contiguous()
            x, h = resample(x), resample(h)
        h = self.conv1(h)
        if self.time_emb_proj is None or temb is None:
            h = self.norm2(h, activation="silu")
        else:
            projected = self.time_emb_proj(temb if self.skip_time_act else self.nonlinearity(temb))
            if modulated:
                scale, shift = projected.chunk(2, dim=1)
                h = self.norm2(h, scale, shift, activation="silu")
            else:
                h = self.norm2(h + projected[:, :, None, None], activation="silu")
        h = self.conv2(self.dropout(h))
        if self.conv_shortcut is not None:
            # As in diffusers: gradients then have the strides that DistributedDataParallel expects.
            x = self.conv_shortcut(x.contiguous() if self.training else x)
        return (x + h) / self.output_scale_factor

    def __reduce__(self) -> tuple[Any, ...]:
        # pickle finds classes by name, and this one is made at run time: it is made again from the original.
        classes = type(self).__mro__
        return _empty_block, (classes[classes.index(FusedResnetBlock) + 1],), self.__dict__


_fused_classes: dict[type[nn.Module], type[nn.Module]] = {}


def _fused_class(original: type[nn.Module]) -> type[nn.Module]:
    """FusedResnetBlock on top of a ResnetBlock2D, of the same name, which device maps go by. Made once for each class."""
    if original not in _fused_classes:
        body = {"__doc__": FusedResnetBlock.__doc__, "__module__": __name__}
        _fused_classes[original] = type(original.__name__, (FusedResnetBlock, original), body)
    return _fused_classes[original]


def _empty_block(original: type[nn.Module]) -> nn.Module:
    """A fused block without content, for pickle and copy to fill."""
    fused = _fused_class(original)
    return fused.__new__(fused)


def _runs_forward_of(module: nn.Module, *names: str) -> bool:
    """Whether the module's forward is that of the diffusers class of one of these names, its own or inherited."""
    return "forward" not in vars(module) and any(
        cls.__name__ in names and cls.__module__.startswith("diffusers.") and type(module).forward is vars(cls).get("forward")
        for cls in type(module).__mro__
    )


def _is_plain(module: Any, kind: type[nn.Module]) -> bool:
    """Whether the module is of this very class and does what the class does."""
    return type(module) is kind and "forward" not in vars(module)


def _fuse_norm(norm: Any, activation: Literal["silu"] | None = None) -> bool:
    """Make an nn.GroupNorm a FusedNorm; False where it is anything else."""
    if not _is_plain(norm, nn.GroupNorm):
        return False
    norm.__class__ = FusedNorm
    if activation is not None:
        norm.activation = activation
    return True


def _fuse_block(block: Any) -> bool:
    """Fuse a ResnetBlock2D; False where it is not one that the fused forward describes."""
    known = (
        all(hasattr(block, name) for name in _BLOCK_PARTS)
        and _is_plain(block.norm1, nn.GroupNorm)
        and _is_plain(block.norm2, nn.GroupNorm)
        and _is_plain(block.nonlinearity, nn.SiLU)
        and block.time_embedding_norm in ("default", "scale_shift")
    )
    if known:
        _fuse_norm(block.norm1)
        _fuse_norm(block.norm2)
        block.__class__ = _fused_class(type(block))
    return known


__all__ = ["accelerate"]
