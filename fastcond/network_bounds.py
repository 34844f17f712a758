"""Between which numbers the sizes of a network lie, whoever wrote them down. Standard library only."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from fastcond.messages import shown

_COUNTS = ("num_classes", "layers_per_block", "num_timesteps")
_WIDTHS = (
    *("in_channels", "out_channels", "attention_head_dim", "norm_num_groups", "time_embedding_dim"),
    *("label_hidden_dim", "label_token_dim", "label_context_dim", "label_attention_heads"),
)
# Labels and timesteps are int32 in files. A weight of the widest layers still has fewer than 2^63 bytes.
_LARGEST_COUNT, _LARGEST_WIDTH = 2**31 - 1, 2**24
# A whole number of a JSON file may be none of a float.
_LARGEST_NUMBER = sys.float_info.max


def check_bounds(config: Any) -> None:
    """Raises: ValueError naming the field of a `UNetConfig` that is too small, too large or not finite."""
    for names, largest in ((_COUNTS, _LARGEST_COUNT), (_WIDTHS, _LARGEST_WIDTH)):
        for name in names:
            check_sizes(name, (getattr(config, name),), largest)
    check_sizes("block_out_channels", config.block_out_channels, _LARGEST_WIDTH)
    largest_side = max(config.image_size)
    require(largest_side <= _LARGEST_WIDTH, f"a side of the image is {shown(largest_side)}; it must be at most {_LARGEST_WIDTH}")
    for name in ("norm_eps", "mid_block_scale_factor"):
        value = getattr(config, name)
        require(0 < value <= _LARGEST_NUMBER, f"{name} is {shown(value)}; it must be positive and finite")
    for name in ("dropout", "label_dropout"):
        value = getattr(config, name)
        require(0.0 <= value < 1.0, f"{name} is {shown(value)}; it must lie in [0, 1)")
    half, shift = config.block_out_channels[0] // 2, config.freq_shift
    if config.time_embedding == "positional":
        found = f"freq_shift is {shown(shift)} for {config.block_out_channels[0]} channels"
        require(-_LARGEST_NUMBER <= shift < half, f"{found}; it must be finite and less than half of them")
    groups, channels = config.mid_attention_norm_groups, config.block_out_channels[-1]
    if config.mid_block and config.mid_attention and groups:
        found = f"a norm of {channels} channels cannot have {shown(groups)} groups"
        fits = groups > 0 and channels % groups == 0
        require(fits, f"{found}; change block_out_channels or mid_attention_norm_groups")


def check_sizes(name: str, values: Sequence[int | None], largest: int = _LARGEST_WIDTH) -> None:
    """Raises: ValueError naming the one that is less than 1, or more than the largest."""
    for value in values:
        require(value is None or value >= 1, f"{name} is {shown(value)}; it must be at least 1")
        require(value is None or value <= largest, f"{name} is {shown(value)}; it must be at most {largest}")


def require(condition: bool, message: str) -> None:
    """Raises: ValueError with the message where the condition does not hold."""
    if not condition:
        raise ValueError(message)
