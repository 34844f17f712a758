"""Checkpoints of guided-diffusion (ADM) and consistency_models: a flat file of weights into a `ConditionalUNet`.

Such a file holds no config. Channels, layers, attention, classes and the kind of blocks show in its names and shapes:

| names there                                | names here                                              |
|--------------------------------------------|---------------------------------------------------------|
| time_embed.{0,2}                           | time_embedding.linear_{1,2}                             |
| label_emb                                  | class_embedding                                         |
| input_blocks.0.0                           | conv_in                                                 |
| input_blocks.{1 + i (n + 1) + j}.{0,1}     | down_blocks.i.resnets.j, down_blocks.i.attentions.j     |
| input_blocks.{(i + 1) (n + 1)}.0           | down_blocks.i.downsamplers.0                            |
| middle_block.{0,1,2}                       | mid_block.resnets.0, .attentions.0, .resnets.1          |
| output_blocks.{i (n + 1) + j}.{0,1,2}      | up_blocks.i.resnets.j, .attentions.j, .upsamplers.0     |
| out.{0,2}                                  | conv_norm_out, conv_out                                 |

for i levels of n layers. Source: Dhariwal & Nichol 2021, section 3 and appendix A; Song et al. 2023, appendix C.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from fastcond.config import DiffusionConfig, UNetConfig
from fastcond.diffusion import from_diffusers_config
from fastcond.interop.weights import build, naming, read_file
from fastcond.nn import ConditionalUNet

QKVOrder = Literal["legacy", "new"]
NoiseScheduleName = Literal["linear", "cosine"]
HEAD_DIM = 64
IMAGE_SIZE = (64, 64)
_GROUPS, _EPS = 32, 1e-5
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def load_guided_diffusion(
    path: str | Path,
    *,
    qkv_order: QKVOrder | None = None,
    head_dim: int = HEAD_DIM,
    image_size: tuple[int, int] = IMAGE_SIZE,
    schedule: NoiseScheduleName | None = None,
    num_timesteps: int = 1000,
) -> ConditionalUNet:
    """A network that guided-diffusion or consistency_models has saved, in float32 and eval mode, on the CPU.

    Args:
        path: such as 64x64_diffusion.pt or ema_0.9999_100000.pt: a dictionary of tensors, read without running what it holds.
        qkv_order: how the rows of an attention's one weight for queries, keys and values follow one another: "new", all queries,
            then all keys, then all values (use_new_attention_order; the 64x64 models), or "legacy", those of one head after
            those of another (the 128x128 to 512x512 ones). None: where the file tells: no attention, one head, or
            consistency_models, whose weights have four dimensions and whose order is new unless it is said to be legacy.
        head_dim: channels of an attention head (num_head_channels); of a network of num_heads heads, channels / num_heads.
        image_size: (H, W) of what is sampled. The weights do not tell.
        schedule: of the noise; None: as ADM's models, cosine at 64x64 and else linear; a network of consistency_models has
            neither, so for one (weights of four dimensions) it has to be given. num_timesteps: T.
    Returns: a `ConditionalUNet` with as many classes as the file has and no null label. `diffusion` is guided-diffusion's: eps,
        linear betas scaled by 1000/T, the noise's variance learned where the output has twice the input's channels, else beta.
        It does not describe a network of consistency_models, which is told rescaled log sigmas for timesteps.
    Raises: FileNotFoundError; ValueError naming the file and what is wrong with it, or what its network has no counterpart for.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; name a checkpoint of guided-diffusion")
    if qkv_order is not None and qkv_order not in get_args(QKVOrder):
        raise ValueError(f"qkv_order is {qkv_order!r}; choose legacy or new")
    if head_dim < 1:
        raise ValueError(f"head_dim is {head_dim}; it must be at least 1")
    weights = _Weights(path, read_file(path))
    found = _Structure(weights)
    if schedule is None and any(name.endswith(".qkv.weight") and value.dim() == 4 for name, value in weights.items()):
        raise weights.error(
            "its attention is stored as consistency_models does, whose networks are told rescaled log sigmas for timesteps: no "
            "schedule here is its own, and no sampler here draws from it; for the network alone, or one of guided-diffusion "
            "after all, give a schedule (--schedule linear, schedule=), and scheduler/ is then not the network's"
        )
    try:
        config = found.config(head_dim, image_size)
        diffusion = _diffusion(found, image_size, schedule, num_timesteps)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    renamed = _renamed(weights, found, head_dim, qkv_order)
    with naming(path):
        return build(config, diffusion, renamed)


class _Weights(Mapping[str, Tensor]):
    """The tensors of a file, and questions that name it in their errors."""

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        self.path, self._tensors = path, tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Any:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def shape(self, name: str, dims: int) -> tuple[int, ...]:
        """Of a tensor that has to be there and have that many dimensions, none of them 0."""
        if name not in self._tensors:
            raise ValueError(
                f"{self.path} has no {name}; a checkpoint of guided-diffusion's or consistency_models' U-Net is needed"
            )
        shape = tuple(self._tensors[name].shape)
        if len(shape) != dims or 0 in shape:
            raise ValueError(f"{self.path}: {name} is {list(shape)}; {dims} dimensions are needed, none of them 0")
        return shape

    def error(self, message: str) -> ValueError:
        return ValueError(f"{self.path}: {message}")


class _Structure:
    """What the names and shapes of a file tell of its network.

    Attributes: levels; layers (n); channels of each level; attends, whether each does; resample ("conv" or "resnet");
        scale_shift; in_channels; out_channels; num_classes, or None.
    """

    def __init__(self, weights: _Weights) -> None:
        width, self.in_channels, *_ = weights.shape("input_blocks.0.0.weight", 4)
        self.out_channels = weights.shape("out.2.weight", 4)[0]
        waves = weights.shape("time_embed.0.weight", 2)[1]
        if waves != width:
            raise weights.error(
                f"its first convolution has {width} channels and its timestep {waves} waves, which are equal in networks here "
                "and in diffusers; a first level with a multiplier other than 1 has no counterpart"
            )
        blocks = _blocks(weights, "output_blocks")
        if _blocks(weights, "input_blocks") != blocks:
            raise weights.error(
                "its input_blocks and output_blocks differ in number, or some have no weights (conv_resample False)"
            )
        # The first level going up ends with what doubles the map: behind a residual block and perhaps attention.
        per_level = blocks
        self.resample = "conv"
        for k in range(blocks):
            kinds = [
                place
                for place in (1, 2)
                for name in ("conv", "in_layers.0")
                if f"output_blocks.{k}.{place}.{name}.weight" in weights
            ]
            if kinds:
                per_level = k + 1
                self.resample = "conv" if f"output_blocks.{k}.{kinds[0]}.conv.weight" in weights else "resnet"
                break
        if blocks % per_level or per_level < 2:
            raise weights.error(f"{blocks} output_blocks do not fall into levels of {per_level}; the file is not whole")
        self.levels, self.layers = blocks // per_level, per_level - 1
        first = [f"input_blocks.{1 + level * per_level}" for level in range(self.levels)]
        self.channels = tuple(weights.shape(f"{block}.0.in_layers.2.weight", 4)[0] for block in first)
        self.attends = tuple(f"{block}.1.qkv.weight" in weights for block in first)
        projected = weights.shape(f"{first[0]}.0.emb_layers.1.weight", 2)[0]
        if projected not in (self.channels[0], 2 * self.channels[0]):
            raise weights.error(f"{first[0]}.0.emb_layers.1.weight has {projected} rows for {self.channels[0]} channels")
        self.scale_shift = projected == 2 * self.channels[0]
        if self.channels[0] != width:
            raise weights.error(
                f"its first convolution has {width} channels and its first level {self.channels[0]}; they must agree"
            )
        self.num_classes = weights.shape("label_emb.weight", 2)[0] if "label_emb.weight" in weights else None

    def config(self, head_dim: int, image_size: tuple[int, int]) -> UNetConfig:
        """As our config. Raises: ValueError for sizes that do not fit."""
        plain = (
            ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if self.resample == "resnet" else ("DownBlock2D", "UpBlock2D")
        )
        return UNetConfig(
            image_size=image_size,
            num_classes=self.num_classes or 1,
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            block_out_channels=self.channels,
            layers_per_block=self.layers,
            attention_resolutions=(),
            attention_head_dim=head_dim,
            conditioning="scale_shift" if self.scale_shift else "bias",
            norm_num_groups=_GROUPS,
            norm_eps=_EPS,
            resample="resnet" if self.resample == "resnet" else "conv",
            down_block_types=tuple("AttnDownBlock2D" if attends else plain[0] for attends in self.attends),
            up_block_types=tuple("AttnUpBlock2D" if attends else plain[1] for attends in reversed(self.attends)),
            class_embedding="none" if self.num_classes is None else "table",
            has_null_label=False,
        )


def _blocks(weights: _Weights, name: str) -> int:
    """How many blocks of that name follow one another from 0."""
    pattern = re.compile(rf"{name}\.(\d{{1,4}})\.")
    numbers = {int(match[1]) for key in weights if (match := pattern.match(key))}
    count = 0
    while count in numbers:
        count += 1
    if len(numbers) != count:
        raise weights.error(
            f"{name} {count} is missing or has no weights; the file is not whole, or its network has conv_resample False, "
            "which has no counterpart here"
        )
    return count


def _diffusion(
    found: _Structure, image_size: tuple[int, int], schedule: NoiseScheduleName | None, num_timesteps: int
) -> DiffusionConfig:
    """guided-diffusion's process in diffusers' words."""
    if schedule is None:
        schedule = "cosine" if image_size == (64, 64) else "linear"
    if schedule not in get_args(NoiseScheduleName):
        raise ValueError(f"schedule is {schedule!r}; choose linear or cosine")
    if num_timesteps < 1:
        raise ValueError(f"num_timesteps is {num_timesteps}; it must be at least 1")
    config: dict[str, Any] = {"_class_name": "DDPMScheduler", "num_train_timesteps": num_timesteps}
    if schedule == "cosine":
        config["beta_schedule"] = "squaredcos_cap_v2"
    else:
        factor = 1000 / num_timesteps
        config |= {"beta_schedule": "linear", "beta_start": 1e-4 * factor, "beta_end": 0.02 * factor}
    config["variance_type"] = "learned_range" if found.out_channels == 2 * found.in_channels else "fixed_large"
    understood = from_diffusers_config(config)
    return DiffusionConfig(num_timesteps=num_timesteps, prediction=understood.prediction, scheduler=config)


def _renamed(weights: _Weights, found: _Structure, head_dim: int, order: QKVOrder | None) -> dict[str, Tensor]:
    """The tensors under our names, where one has a place; what has none keeps its own, and is then complained about."""
    places = _places(found)
    renamed: dict[str, Tensor] = {}
    for name, value in weights.items():
        module, _, kind = name.rpartition(".")
        if module in places:
            renamed[f"{places[module]}.{kind}"] = value
            continue
        block, _, part = module.rpartition(".")
        if part == "qkv" and block in places:
            for letter, rows in zip("qkv", _split_qkv(weights, name, head_dim, order), strict=True):
                renamed[f"{places[block]}.to_{letter}.{kind}"] = rows
        elif part == "proj_out" and block in places:
            renamed[f"{places[block]}.to_out.0.{kind}"] = value.flatten(1) if kind == "weight" and value.dim() > 1 else value
        elif part == "norm" and block in places:
            renamed[f"{places[block]}.group_norm.{kind}"] = value
        else:
            renamed[name] = value
    return renamed


def _places(found: _Structure) -> dict[str, str]:
    """Modules there -> modules here: whole attentions, and the layers of everything else."""
    places = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "label_emb": "class_embedding",
    }
    places |= {"input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out"}

    def add_resnet(there: str, here: str) -> None:
        places.update({f"{there}.{layer}": f"{here}.{name}" for layer, name in _RESNET.items()})

    per_level = found.layers + 1
    for level in range(found.levels):
        going_up = found.levels - 1 - level
        for j in range(per_level):
            down, up = f"input_blocks.{1 + level * per_level + j}", f"output_blocks.{level * per_level + j}"
            if j < found.layers:
                add_resnet(f"{down}.0", f"down_blocks.{level}.resnets.{j}")
                places[f"{down}.1"] = f"down_blocks.{level}.attentions.{j}"
            elif level < found.levels - 1:
                add_resnet(f"{down}.0", f"down_blocks.{level}.downsamplers.0")
                places[f"{down}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
            add_resnet(f"{up}.0", f"up_blocks.{level}.resnets.{j}")
            attends = found.attends[going_up]
            if attends:
                places[f"{up}.1"] = f"up_blocks.{level}.attentions.{j}"
            if j == found.layers and level < found.levels - 1:
                place = 2 if attends else 1
                add_resnet(f"{up}.{place}", f"up_blocks.{level}.upsamplers.0")
                places[f"{up}.{place}.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
    add_resnet("middle_block.0", "mid_block.resnets.0")
    places["middle_block.1"] = "mid_block.attentions.0"
    add_resnet("middle_block.2", "mid_block.resnets.1")
    return places


def _split_qkv(weights: _Weights, name: str, head_dim: int, order: QKVOrder | None) -> tuple[Tensor, Tensor, Tensor]:
    """Queries', keys' and values' rows [C, C], or [C] of a bias, whose heads follow one another.

    New: rows are [q, k, v][heads][head_dim]; legacy: [heads][q, k, v][head_dim].
    """
    value = weights[name]
    rows = value.shape[0] if value.dim() else 0
    channels = rows // 3
    if not rows or rows % 3 or channels % head_dim or (value.dim() > 1 and value.numel() != rows * value.shape[1]):
        raise weights.error(
            f"{name} is {list(value.shape)}, which is no weight of queries, keys and values in heads of {head_dim}; give the "
            "head dimension (num_head_channels, or channels / num_heads)"
        )
    heads = channels // head_dim
    if order is None:
        kernel = weights.get(name.rpartition(".")[0] + ".weight", value)
        if heads > 1 and kernel.dim() == 3:
            raise weights.error(
                "its attention may be in either order, which the weights do not tell; give the order (--qkv-order, qkv_order): "
                "new for a network made with use_new_attention_order, such as ADM's at 64x64, legacy for the others"
            )
        order = "new"
    flat = value.reshape(rows, math.prod(value.shape[1:])) if value.dim() > 1 else value
    if order == "new":
        q, k, v = flat.chunk(3)
        return q, k, v
    by_head = flat.unflatten(0, (heads, 3, head_dim))
    q, k, v = (by_head[:, i].flatten(0, 1) for i in range(3))
    return q, k, v


__all__ = ["load_guided_diffusion"]
