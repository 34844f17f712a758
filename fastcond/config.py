"""What defines a model and a run: frozen dataclasses and presets. Standard library only; every layer may import it."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from fastcond.image_path import check_image_path
from fastcond.messages import shown
from fastcond.network_bounds import check_bounds, require

Conditioning = Literal["adagn", "scale_shift", "bias", "label_attention"]
Prediction = Literal["eps", "v", "x_0"]
Variance = Literal["fixed", "learned_range"]
CONDITIONINGS = ("adagn", "scale_shift", "bias", "label_attention")
PREDICTIONS = ("eps", "v", "x_0")
VARIANCES = ("fixed", "learned_range")
SCHEDULES = ("linear", "cosine")
WEIGHTINGS = ("mse", "min_snr")
LR_SCHEDULES = ("cosine", "constant")
PRECISIONS = ("fp32", "bf16")
RESAMPLERS = ("conv", "resnet")
DOWN_BLOCK_TYPES = (
    *("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D", "SkipDownBlock2D", "AttnSkipDownBlock2D"),
    "CrossAttnDownBlock2D",
)
UP_BLOCK_TYPES = (
    *("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D", "SkipUpBlock2D", "AttnSkipUpBlock2D"),
    "CrossAttnUpBlock2D",
)
TIME_EMBEDDINGS = ("positional", "fourier", "learned")
CLASS_EMBEDDINGS = ("table", "timestep", "identity", "none")
SAMPLER_NAMES = ("ddpm", "ddim", "dpmpp2m", "heun")  # fastcond.diffusion.SAMPLERS has the samplers themselves

C = TypeVar("C")


def _require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    require(value in choices, f"{name} is {shown(value)}; choose one of {', '.join(choices)}")


@dataclass(frozen=True)
class UNetConfig:
    """Shape of a `ConditionalUNet`; `fastcond.nn.unet` has the table of conditionings.

    Attributes:
        image_size: (H, W) in pixels, both divisible by 2^(levels - 1).
        num_classes: K; labels are 0 .. K-1 and K is the null label.
        in_channels, out_channels: channels of x_t and of the network's output.
        block_out_channels: channels of each level, finest first; its length is the number of levels.
        layers_per_block: residual blocks of a level on the way down (one more on the way up).
        attention_resolutions: a level has self-attention where the longer side of its map is in here.
        attention_head_dim: channels of one attention head.
        conditioning: how time and label enter a block: "adagn", "scale_shift", "bias", or "label_attention": time as with
            "bias", and a label through transformer blocks where the others have self-attention.
        norm_num_groups, norm_eps: of every group norm. None, of Skip blocks alone: a group has four channels, or is one of 32.
        dropout: probability, before the second convolution of a block.
        resample: "conv" (stride 2; nearest and convolution) or "resnet" (a resampling residual block, as in ADM).
        class_embedding_mlp: a two-layer MLP after the class-embedding table.

    What other networks of diffusers' `UNet2DModel` have (its own words where it has one):
        down_block_types, up_block_types: of each level, finest first going down and coarsest first going up; None: attention by
            attention_resolutions and resampling by resample. A DownBlock2D resamples by "conv", a ResnetDownsampleBlock2D by
            "resnet", an AttnDownBlock2D by resample, and the like going up by resample_up (None: as resample). Those of "Skip"
            in their name are in `fastcond.nn.skip_blocks`.
        mid_block: whether there is one; mid_attention: whether it has attention; mid_attention_norm_groups: of its norm, 0 for
            none, None for norm_num_groups. mid_block_scale_factor: what the sums of its residual connections are divided by.
        downsample_padding: of a "conv" downsampler, 1 on all sides, or 0: one row below and one column to the right.
        attention_head_dim: None for one head.
        time_embedding: "positional", "fourier" (of log t, and the output is divided by t) or "learned" (num_timesteps rows).
        time_embedding_dim: D; None for four times the first level's channels. flip_sin_to_cos: cos comes first.
        freq_shift: s in exp(-ln(10000) i / (half - s)).
        class_embedding: "table", of num_classes rows and the null label's; "timestep": the label embedded as a timestep is;
            "identity": the label is a vector [D] already; "none": the network knows no label.
        has_null_label: whether the table has the null label's row; guidance needs it.
        center_input: x_t is taken as 2 x_t - 1.

    Of "label_attention" alone, with what diffusers' `UNet2DConditionModel` calls them:
        label_hidden_dim: width of the MLP on the one-hot label. label_token_dim: of its output (encoder_hid_dim); None: that of
            the token in the blocks, which is then no projection of it.
        label_context_dim: of the token in the blocks (cross_attention_dim). label_attention_heads: of their self-attention.
        label_dropout: probability, within the MLP.
    """

    image_size: tuple[int, int]
    num_classes: int
    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (64, 128)
    layers_per_block: int = 2
    attention_resolutions: tuple[int, ...] = (16, 8)
    attention_head_dim: int | None = 32
    conditioning: Conditioning = "adagn"
    norm_num_groups: int | None = 32
    norm_eps: float = 1e-5
    dropout: float = 0.0
    resample: Literal["conv", "resnet"] = "conv"
    class_embedding_mlp: bool = False
    down_block_types: tuple[str, ...] | None = None
    up_block_types: tuple[str, ...] | None = None
    resample_up: Literal["conv", "resnet"] | None = None
    mid_block: bool = True
    mid_attention: bool = True
    mid_attention_norm_groups: int | None = None
    mid_block_scale_factor: float = 1.0
    downsample_padding: int = 1
    time_embedding: Literal["positional", "fourier", "learned"] = "positional"
    time_embedding_dim: int | None = None
    flip_sin_to_cos: bool = True
    freq_shift: float = 0.0
    num_timesteps: int | None = None
    class_embedding: Literal["table", "timestep", "identity", "none"] = "table"
    has_null_label: bool = True
    center_input: bool = False
    label_hidden_dim: int = 64
    label_token_dim: int | None = 64
    label_context_dim: int = 1280
    label_attention_heads: int = 8
    label_dropout: float = 0.0

    def __post_init__(self) -> None:
        height, width = self.image_size
        factor = 2 ** (len(self.block_out_channels) - 1)
        _require_choice("conditioning", self.conditioning, CONDITIONINGS)
        _require_choice("resample", self.resample, RESAMPLERS)
        require(len(self.block_out_channels) > 0, "block_out_channels is empty; give one number a level")
        check_bounds(self)
        self._check_blocks()
        require(
            height >= factor and width >= factor and height % factor == 0 and width % factor == 0,
            f"image size {shown(height)}x{shown(width)} does not fit a network of {len(self.block_out_channels)} levels: height "
            f"and width must be multiples of {factor}; use --size {_round_up(height, factor)}x{_round_up(width, factor)} or "
            "another --preset",
        )
        for level, channels in enumerate(self.block_out_channels):
            last = level == len(self.block_out_channels) - 1
            # Skip blocks have groups of their own; conv_norm_out and the middle have the network's.
            own_groups = self.skips("down", level) and self.skips("up", level)
            require(
                (own_groups and level > 0 and not (last and self.mid_block)) or channels % self.norm_groups(channels) == 0,
                f"{channels} channels cannot be divided into {self.norm_groups(channels)} groups; change norm_num_groups",
            )
            attends = any(self.attends(way, level) for way in ("down", "up")) or (last and self.mid_block and self.mid_attention)
            head_dim = self._head_dim(channels)
            has_heads = not attends or channels % head_dim == 0
            require(has_heads, f"{channels} channels cannot be divided into heads of {head_dim}; change attention_head_dim")

    def _check_blocks(self) -> None:
        levels = len(self.block_out_channels)
        for name, known in (("down_block_types", DOWN_BLOCK_TYPES), ("up_block_types", UP_BLOCK_TYPES)):
            types = getattr(self, name)
            require(types is None or len(types) == levels, f"{name} has {len(types or ())} entries for {levels} levels")
            for block in types or ():
                _require_choice(name, block, known)
        require(self.resample_up is None or self.resample_up in RESAMPLERS, f"resample_up is {shown(self.resample_up)}")
        _require_choice("time_embedding", self.time_embedding, TIME_EMBEDDINGS)
        _require_choice("class_embedding", self.class_embedding, CLASS_EMBEDDINGS)
        require(self.downsample_padding in (0, 1), f"downsample_padding is {shown(self.downsample_padding)}; choose 0 or 1")
        rows_known = self.time_embedding != "learned" or self.num_timesteps is not None
        require(rows_known, "a learned time embedding has one row a timestep; give num_timesteps")
        of_label = self.conditioning == "label_attention"
        for block in (*(self.down_block_types or ()), *(self.up_block_types or ())):
            require(of_label or not block.startswith("CrossAttn"), f"{block} needs conditioning 'label_attention'")
            require(not of_label or "Skip" not in block, f"{block} cannot be combined with conditioning 'label_attention'")
        require(not of_label or self.class_embedding == "table", "with label_attention leave class_embedding as it is")
        grouped = self.norm_num_groups or all(self.skips(way, level) for way in ("down", "up") for level in range(levels))
        require(bool(grouped), "norm_num_groups is None, which only Skip blocks allow; give a number")
        check_image_path(self.down_block_types, self.up_block_types, self.in_channels, self.out_channels)

    @property
    def null_label(self) -> int:
        """The label that stands for "no condition": K."""
        return self.num_classes

    @property
    def largest_label(self) -> int:
        """K, or K - 1 where there is no null label; where labels are embedded as timesteps are, of any int32."""
        if self.class_embedding == "timestep":
            return 2**31 - 1
        return self.num_classes if self.has_null_label else self.num_classes - 1

    @property
    def embedding_dim(self) -> int:
        """Width D of the time and class embedding."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]

    def level_size(self, level: int) -> tuple[int, int]:
        """(H, W) of the feature map of `level`, 0 the finest."""
        return self.image_size[0] >> level, self.image_size[1] >> level

    def _head_dim(self, channels: int) -> int:
        if self.conditioning == "label_attention":
            return max(1, channels // self.label_attention_heads)
        return self.attention_head_dim or channels

    def norm_groups(self, channels: int) -> int:
        """Groups of a norm of that many channels, where the block has no rule of its own."""
        return max(1, min(channels // 4, 32)) if self.norm_num_groups is None else self.norm_num_groups

    def skips(self, way: str, level: int) -> bool:
        """Whether the block of `level` on the way "down" or "up" passes on the image beside its map: a Skip block."""
        return "Skip" in (self._block_type(way, level) or "")

    def attends(self, way: str, level: int) -> bool:
        """Whether the residual blocks of `level` on the way "down" or "up" are followed by attention."""
        block = self._block_type(way, level)
        return max(self.level_size(level)) in self.attention_resolutions if block is None else "Attn" in block

    def resampler(self, way: str, level: int) -> str:
        """How `level` changes size on the way "down" or "up": "conv" or "resnet"."""
        default = self.resample if way == "down" or self.resample_up is None else self.resample_up
        block = self._block_type(way, level)
        if block is None or block.startswith("Attn"):
            return default
        return "resnet" if block.startswith("Resnet") else "conv"

    def _block_type(self, way: str, level: int) -> str | None:
        types, place = (self.down_block_types, level) if way == "down" else (self.up_block_types, -1 - level)
        return None if types is None else types[place]


@dataclass(frozen=True)
class DiffusionConfig:
    """What a network's output means: the noise schedule it was trained under and what it predicts.

    Attributes:
        schedule: "linear" or "cosine".
        num_timesteps: T.
        rescale_linear_betas: multiply linear betas by 1000/T, so that any T ends in noise (Dhariwal & Nichol 2021).
        zero_terminal_snr: rescale so that timestep T-1 is pure noise (Lin et al. 2024); needs prediction "v" or "x_0".
        prediction: "eps", "v" or "x_0".
        variance: "fixed", or "learned_range": the network has C channels more, which say where between the posterior's variance
            and beta that of ddpm's noise lies (Nichol & Dhariwal 2021, eq. 15).
        scheduler: a scheduler_config.json of diffusers, which then says what the schedule is, and what "scheduler" is among the
            samplers; the fields before are then of no account, but for num_timesteps and prediction, which repeat it.
    """

    schedule: Literal["linear", "cosine"] = "linear"
    num_timesteps: int = 1000
    rescale_linear_betas: bool = True
    zero_terminal_snr: bool = False
    prediction: Prediction = "eps"
    variance: Variance = "fixed"
    scheduler: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        _require_choice("schedule", self.schedule, SCHEDULES)
        _require_choice("prediction", self.prediction, PREDICTIONS)
        _require_choice("variance", self.variance, VARIANCES)
        require(self.variance == "fixed" or self.num_timesteps > 1, "a learned variance needs 2 timesteps at least")
        require(self.num_timesteps >= 1, f"num_timesteps is {self.num_timesteps}; it must be at least 1")
        require(
            not (self.zero_terminal_snr and self.prediction == "eps"),
            "zero terminal SNR makes a timestep of pure noise, where eps says nothing about x_0; use prediction v or x_0",
        )


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained. Exactly one of `steps` and `minutes` is set.

    Attributes:
        steps: number of optimiser steps; minutes: wall-clock budget, which the learning-rate schedule follows.
        batch_size: images a step, over all processes and accumulated micro-batches.
        accumulation: micro-batches a step.
        learning_rate, weight_decay, warmup_steps, lr_schedule ("cosine" falls to zero at the end, "constant" does not).
        clip_grad_norm: largest 2-norm of the gradient.
        ema_decay: largest decay of the exponential moving average; early on it is (1 + step) / (10 + step).
        label_dropout: probability that a label is replaced by the null label (Ho & Salimans 2022).
        weighting: "mse" or "min_snr" (Hang et al. 2023) with min_snr_gamma.
        balanced: draw each class equally often. flip: mirror half of the images left to right.
        precision: "fp32" or "bf16" (autocast). compile: torch.compile the network.
        seed: of initial weights, batches, timesteps, noise, label dropout and flips.
    """

    steps: int | None = None
    minutes: float | None = None
    batch_size: int = 128
    accumulation: int = 1
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    warmup_steps: int = 100
    lr_schedule: Literal["cosine", "constant"] = "cosine"
    clip_grad_norm: float = 1.0
    ema_decay: float = 0.9999
    label_dropout: float = 0.1
    weighting: Literal["mse", "min_snr"] = "mse"
    min_snr_gamma: float = 5.0
    balanced: bool = False
    flip: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        require((self.steps is None) != (self.minutes is None), "give either steps or minutes, not both or none")
        require(self.steps is None or self.steps >= 1, f"steps is {self.steps}; it must be at least 1")
        require(self.minutes is None or self.minutes > 0, f"minutes is {self.minutes}; it must be positive")
        _require_choice("weighting", self.weighting, WEIGHTINGS)
        _require_choice("lr_schedule", self.lr_schedule, LR_SCHEDULES)
        _require_choice("precision", self.precision, PRECISIONS)
        require(self.batch_size >= 1, f"batch size is {self.batch_size}; it must be at least 1")
        require(
            self.accumulation >= 1 and self.batch_size % self.accumulation == 0,
            f"batch size {self.batch_size} cannot be split into {self.accumulation} equal micro-batches",
        )
        require(self.learning_rate > 0, f"learning rate is {self.learning_rate}; it must be positive")
        require(self.clip_grad_norm > 0, f"gradient clipping norm is {self.clip_grad_norm}; it must be positive")
        require(self.min_snr_gamma > 0, f"min-SNR gamma is {self.min_snr_gamma}; it must be positive")
        require(self.warmup_steps >= 0, f"warm-up is {self.warmup_steps} steps; it cannot be negative")
        require(self.weight_decay >= 0, f"weight decay is {self.weight_decay}; it cannot be negative")
        require(0.0 <= self.label_dropout <= 1.0, f"label dropout is {self.label_dropout}; it must lie in [0, 1]")
        require(0.0 <= self.ema_decay < 1.0, f"EMA decay is {self.ema_decay}; it must lie in [0, 1)")
        require(0 <= self.seed < 2**32, f"seed is {self.seed}; it must lie in [0, 2^32)")


@dataclass(frozen=True)
class DataConfig:
    """Where the images came from, as given on the command line; enough to open them again.

    label_rows: whether their labels are rows of numbers, or else one class each; None where that was not noted.
    """

    source: str
    labels: str | None = None
    size: tuple[int, int] | None = None
    label_rows: bool | None = None


@dataclass(frozen=True)
class RunConfig:
    """All that config.json of a run holds."""

    network: UNetConfig
    diffusion: DiffusionConfig
    training: TrainingConfig
    data: DataConfig


def _round_up(value: int, factor: int) -> int:
    return max(factor, (value + factor - 1) // factor * factor)


def to_dict(config: Any) -> dict[str, Any]:
    """The dataclass `config` as a JSON-ready dictionary (tuples as lists)."""
    return dataclasses.asdict(config)


def from_dict(kind: type[C], values: Mapping[str, Any], where: str = "") -> C:
    """Rebuild a config dataclass from `to_dict`'s dictionary.

    Raises: ValueError naming a key that is unknown, missing or of another type, so that a file of another version is not
        half-read.
    """
    nested = {"network": UNetConfig, "diffusion": DiffusionConfig, "training": TrainingConfig, "data": DataConfig}
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    require(isinstance(values, Mapping), f"{where or 'config'} is not an object of named values")
    for key in values:
        require(key in fields, f"unknown key {shown(key)} in {where or kind.__name__}")
    arguments: dict[str, Any] = {}
    for name, spec in fields.items():
        if name not in values:
            optional = spec.default is not dataclasses.MISSING or spec.default_factory is not dataclasses.MISSING
            require(optional, f"key {name!r} is missing in {where or kind.__name__}")
            continue
        value = values[name]
        if kind is RunConfig:
            value = from_dict(nested[name], value, name)
        value = tuple(value) if isinstance(value, list) else value
        require(_fits(value, hints[name]), f"{name} in {where or kind.__name__} is {shown(value)}, a value of another type")
        arguments[name] = value
    return kind(**arguments)


def _fits(value: Any, hint: Any) -> bool:
    """Whether `value` may stand in a field annotated `hint`; which strings a Literal allows is the dataclass's own check."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return isinstance(value, str)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Mapping:
        return isinstance(value, Mapping)
    if origin is tuple:
        kinds = [parts[0]] * len(value) if isinstance(value, tuple) and parts[-1] is Ellipsis else parts
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_fits, value, kinds))
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint)
