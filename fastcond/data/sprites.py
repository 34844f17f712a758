"""The built-in data set: 16x16 pixel-art sprites of five classes on white, drawn from a seed.

Each sprite is a pure function of (label, index, seed): its archetype (a knight, a bat, a cake), pose, parts, place and
colours are dice of that triple. Nothing is stored or downloaded.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from fastcond.data.sprite_canvas import SIZE, Dice
from fastcond.data.sprite_creatures import CREATURES, draw_creature
from fastcond.data.sprite_food import FOODS, draw_food
from fastcond.data.sprite_heroes import HEROES, draw_hero
from fastcond.data.sprite_side_heroes import SIDE_HEROES, draw_side_hero
from fastcond.data.sprite_spells import SPELLS, draw_spell

CLASS_NAMES = ("hero", "non-hero", "food", "spell", "side-facing hero")

# By label: the archetypes of the class, and the function that draws one of them.
_CLASSES: tuple[tuple[Mapping[str, object], Callable[[str, Dice], NDArray[np.uint8]]], ...] = (
    (HEROES, draw_hero),
    (CREATURES, draw_creature),
    (FOODS, draw_food),
    (SPELLS, draw_spell),
    (SIDE_HEROES, draw_side_hero),
)
ARCHETYPES: tuple[tuple[str, ...], ...] = tuple(tuple(archetypes) for archetypes, _ in _CLASSES)


def _roll(label: int, index: int, seed: int) -> tuple[str, Dice]:
    """The archetype of a sprite, and the dice that decide the rest of it."""
    if not 0 <= label < len(CLASS_NAMES):
        raise ValueError(f"label must be in 0..{len(CLASS_NAMES) - 1} ({', '.join(CLASS_NAMES)}), got {label}")
    if index < 0 or seed < 0:
        raise ValueError(f"index and seed must not be negative, got index={index}, seed={seed}")
    dice = Dice(seed, label, index)
    return dice.pick(ARCHETYPES[label]), dice


def sprite_archetype(label: int, index: int, seed: int = 0) -> str:
    """The name of what draw_sprite(label, index, seed) shows, one of ARCHETYPES[label]."""
    return _roll(label, index, seed)[0]


def draw_sprite(label: int, index: int, seed: int = 0) -> NDArray[np.uint8]:
    """Draw one sprite of a class, a pure function of its arguments.

    Args:
        label: the class, an index into CLASS_NAMES.   index, seed: any integers >= 0; another pair is another sprite.
    Returns: RGB uint8 [16, 16, 3] on a white background.
    Raises: ValueError for a label without a class, or a negative index or seed.
    """
    archetype, dice = _roll(label, index, seed)
    return _CLASSES[label][1](archetype, dice)


def draw_sprites(count: int = 10_000, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw the first `count` sprites of a seed, the classes in turn.

    Image i is draw_sprite(i % 5, i, seed), so that a smaller set is the beginning of a larger one.

    Returns: (images RGB uint8 [count, 16, 16, 3], labels int64 [count]).
    Raises: ValueError for a negative count or seed.
    """
    if count < 0:
        raise ValueError(f"count must not be negative, got {count}")
    labels = np.arange(count, dtype=np.int64) % len(CLASS_NAMES)
    images = np.empty((count, SIZE, SIZE, 3), np.uint8)
    for index, label in enumerate(labels.tolist()):
        images[index] = draw_sprite(label, index, seed)
    return images, labels
