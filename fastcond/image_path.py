"""Where Skip blocks can stand in a network: they pass on an image beside their map. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence

_CHANNELS = 3


def check_image_path(
    down_block_types: Sequence[str] | None, up_block_types: Sequence[str] | None, in_channels: int, out_channels: int
) -> None:
    """Whether the image has the size and the channels of the maps that it is added to.

    Args: the fields of `UNetConfig`, types going down finest first and going up coarsest first; None: no Skip blocks.
    Raises: ValueError naming what does not fit, where, and what to do. Blocks of other types neither halve nor double the image.
    """
    down, up = tuple(down_block_types or ()), tuple(up_block_types or ())
    ways = (
        ("down_block_types", down, down, "in_channels", in_channels, range(len(down) - 1)),
        ("up_block_types", up, up[::-1], "out_channels", out_channels, range(1, len(up))),
    )
    for name, given, types, key, channels, resampling in ways:
        for level in (level for level in resampling if "Skip" in types[level]):
            found = f"the {types[level]} of level {level} (0 is the finest) resamples an image"
            if channels != _CHANNELS:
                raise ValueError(
                    f"{key} is {channels}, but {found} of {_CHANNELS} channels; give {_CHANNELS} or another block type"
                )
            for finer in (finer for finer in range(level) if "Skip" not in types[finer]):
                wrong = f"{found} that the {types[finer]} of level {finer} does not"
                raise ValueError(f"{name} is {given}, but {wrong}; use Skip blocks at all finer levels, or not here")
