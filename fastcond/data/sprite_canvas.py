"""What every sprite is drawn with: a grid of palette roles, templates written as text, and hue-shifted colour ramps.

A sprite is drawn as *roles* (uint8 [16, 16], 0 is the background) and coloured in one look-up at the end. Six ramps of
four shades each cover any figure; a template names them by letter:

    ramp          A B C D E F
    light         1 2 3 4 5 6
    base          A B C D E F
    shadow        a b c d e f
    outline       q r s t u v         also: k ink, w white, . nothing

Only integers, comparisons and IEEE + - * / decide a pixel, so that it is the same on every platform.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

SIZE = 16
Grid: TypeAlias = NDArray[np.uint8]
Colour: TypeAlias = tuple[float, float, float]  # hue in degrees, saturation and value in [0, 1]
RGB: TypeAlias = tuple[int, int, int]
Option = TypeVar("Option")

OUTLINE, SHADOW, BASE, LIGHT = range(4)
RAMP_LETTERS = "ABCDEF"
INK = 1 + 4 * len(RAMP_LETTERS)
WHITE = INK + 1
HALO = WHITE + 1  # the first of the halo's roles, from the strongest tint outwards
HALO_TINTS = (0.38, 0.15)
ROLE_COUNT = HALO + len(HALO_TINTS)
WHITE_RGB: RGB = (255, 255, 255)


def _legend() -> dict[str, int]:
    legend = {".": 0, "k": INK, "w": WHITE}
    for shade, letters in ((OUTLINE, "qrstuv"), (SHADOW, "abcdef"), (BASE, RAMP_LETTERS), (LIGHT, "123456")):
        legend.update({letter: 1 + 4 * ramp + shade for ramp, letter in enumerate(letters)})
    return legend


_LEGEND = _legend()

# The outline role that a filled pixel throws on its empty neighbours. Outlines and ink throw none, so that a line drawn
# by hand (a spider's leg) stays one pixel wide.
_OUTLINE_OF = np.zeros(ROLE_COUNT, np.uint8)
for _role in range(1, INK):
    _OUTLINE_OF[_role] = 0 if (_role - 1) % 4 == OUTLINE else _role - (_role - 1) % 4
_OUTLINE_OF[WHITE] = INK


class Dice:
    """Every choice of one sprite, a pure function of (seed, label, index).

    Reads the raw words of PCG64, whose stream NumPy guarantees, rather than Generator methods, which may change.
    """

    def __init__(self, seed: int, label: int, index: int) -> None:
        generator = np.random.default_rng((seed, label, index))
        self._words = iter(generator.bit_generator.random_raw(96).tolist())

    def below(self, count: int) -> int:
        """An integer in [0, count)."""
        return int(next(self._words)) * count >> 64

    def pick(self, options: Sequence[Option]) -> Option:
        return options[self.below(len(options))]

    def chance(self, percent: int) -> bool:
        return self.below(100) < percent

    def between(self, low: float, high: float) -> float:
        """A float in [low, high), of 2**-20 steps."""
        return low + (high - low) * (self.below(1 << 20) / (1 << 20))


def layer(text: str, x: int = 0, y: int = 0, outlined: bool = False) -> Grid:
    """Roles uint8 [16, 16] of a template whose first character lies at column x, row y.

    With `outlined`, the part carries its own outline, which sets it off from what it is stamped on.
    """
    grid = np.zeros((SIZE, SIZE), np.uint8)
    rows = text.split()
    for row, line in enumerate(rows, start=y):
        assert len(line) == len(rows[0]), f"ragged template row {line!r}"
        grid[row, x : x + len(line)] = [_LEGEND[letter] for letter in line]
    return outline(grid) if outlined else grid


def poses(text: str, y: int) -> tuple[Grid, ...]:
    """Roles of the templates that stand side by side in the text, each 14 wide, drawn from column 1 and row y."""
    columns = zip(*(line.split() for line in text.strip().splitlines()), strict=True)
    return tuple(layer("\n".join(rows), 1, y) for rows in columns)


def stamp(grid: Grid, *parts: Grid | None) -> None:
    """Draw the parts over the grid, in place and in order; None is skipped."""
    for part in parts:
        if part is not None:
            np.copyto(grid, part, where=part != 0)


def shifted(grid: Grid, dx: int, dy: int) -> Grid:
    """The grid moved dx to the right and dy down; what leaves is lost, what enters is empty."""
    if dx == 0 and dy == 0:
        return grid
    moved = np.zeros_like(grid)
    height, width = grid.shape
    moved[max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)] = grid[
        max(-dy, 0) : height + min(-dy, 0), max(-dx, 0) : width + min(-dx, 0)
    ]
    return moved


def placed(grid: Grid, dice: Dice) -> Grid:
    """The grid moved by at most a pixel each way, as far as its outline stays within the picture."""

    def moves(filled: NDArray[np.bool_]) -> list[int]:
        first, last = int(filled.argmax()), SIZE - 1 - int(filled[::-1].argmax())
        return [move for move in (-1, 0, 1) if first + move >= 1 and last + move <= SIZE - 2] or [0]

    filled = grid != 0
    return shifted(grid, dice.pick(moves(filled.any(axis=0))), dice.pick(moves(filled.any(axis=1))))


def _spread(grid: Grid) -> Grid:
    """The largest role among each pixel's four neighbours, uint8 [16, 16]."""
    result = np.zeros_like(grid)
    np.maximum(result[1:], grid[:-1], out=result[1:])
    np.maximum(result[:-1], grid[1:], out=result[:-1])
    np.maximum(result[:, 1:], grid[:, :-1], out=result[:, 1:])
    np.maximum(result[:, :-1], grid[:, 1:], out=result[:, :-1])
    return result


def outline(grid: Grid) -> Grid:
    """The grid with every empty neighbour of a filled pixel in the outline shade of that pixel's ramp."""
    return np.where(grid == 0, _spread(_OUTLINE_OF[grid]), grid)


def glow(grid: Grid) -> Grid:
    """The grid with a halo of fading tints around everything drawn."""
    for tint in range(len(HALO_TINTS)):
        near = _spread((grid != 0).astype(np.uint8)) != 0
        grid = np.where((grid == 0) & near, np.uint8(HALO + tint), grid)
    return grid


def rgb(colour: Colour) -> RGB:
    """8-bit RGB of a hue in degrees (any), saturation and value (clamped to [0, 1])."""
    hue, saturation, value = colour
    saturation, value = min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0)

    def channel(offset: float) -> int:
        k = (offset + hue / 60.0) % 6.0
        return int(255.0 * value * (1.0 - saturation * max(0.0, min(k, 4.0 - k, 1.0))) + 0.5)

    return channel(5.0), channel(3.0), channel(1.0)


def _turned(hue: float, target: float, degrees: float) -> float:
    """The hue, turned by at most `degrees` towards the target hue the short way round."""
    distance = (target - hue + 180.0) % 360.0 - 180.0
    return hue + min(max(distance, -degrees), degrees)


def shaded(colour: Colour) -> list[RGB]:
    """A ramp of a lit solid: outline, shadow, base, light. Shadows turn to violet, lights to yellow, as in daylight."""
    hue, saturation, value = colour
    return [
        rgb((_turned(hue, 255.0, 24.0), min(saturation * 1.05 + 0.12, 0.85), value * 0.26 + 0.03)),
        rgb((_turned(hue, 255.0, 14.0), saturation * 1.05 + 0.06, value * 0.70)),
        rgb(colour),
        rgb((_turned(hue, 58.0, 14.0), saturation * 0.58, value * 0.55 + 0.47)),
    ]


def glowing(colour: Colour) -> list[RGB]:
    """A ramp of something that shines: a deep saturated rim, then ever lighter towards the core."""
    hue, saturation, value = colour
    return [
        rgb((_turned(hue, 255.0, 18.0), saturation * 1.05 + 0.05, value * 0.62)),
        rgb((hue, saturation, value * 0.90)),
        rgb((_turned(hue, 58.0, 12.0), saturation * 0.84, value * 0.45 + 0.55)),
        rgb((_turned(hue, 58.0, 24.0), saturation * 0.18, 1.0)),
    ]


def near(colour: Colour, dice: Dice, hue: float = 7.0) -> Colour:
    """The colour, moved a little: by `hue` degrees at most, and by a few percent in saturation and value."""
    return (
        colour[0] + dice.between(-hue, hue),
        colour[1] * dice.between(0.90, 1.08),
        colour[2] * dice.between(0.92, 1.05),
    )


def paint(grid: Grid, ramps: Sequence[Colour], shades: Callable[[Colour], list[RGB]] = shaded) -> NDArray[np.uint8]:
    """The sprite of a grid of roles, RGB uint8 [16, 16, 3], with ramps A, B, ... coloured in order."""
    table: list[RGB] = [WHITE_RGB]
    for colour in ramps:
        table.extend(shades(colour))
    table.extend([WHITE_RGB] * (INK - len(table)))
    table.append((28, 24, 40))
    table.append((250, 248, 244))
    hue, saturation, _ = ramps[0]
    table.extend(rgb((hue, saturation * strength, 1.0)) for strength in HALO_TINTS)
    colours: NDArray[np.uint8] = np.array(table, np.uint8)
    return colours[grid]


@dataclass(frozen=True)
class Figure:
    """An archetype drawn in one piece: its shapes, its palettes, and whether it may point any of four ways."""

    shapes: tuple[Grid, ...]
    palettes: tuple[tuple[Colour, ...], ...]
    turned: bool = False

    def pose(self, dice: Dice) -> Grid:
        """One of the shapes, as it is or mirrored, in its place and outlined."""
        grid = dice.pick(self.shapes)
        if dice.chance(50):
            grid = grid[:, ::-1]
        if self.turned:
            grid = np.rot90(grid, dice.below(4))
        return outline(placed(grid, dice))

    def ramps(self, dice: Dice) -> list[Colour]:
        """The colours of one of the palettes, moved a little."""
        return [near(colour, dice, 10) for colour in dice.pick(self.palettes)]
