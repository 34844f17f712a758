"""Heroes in profile, all walking to the right: nose and weapon lead, hair, plume and cape trail.

Ramps as for the heroes seen from the front: A cloth, B trim, C metal, D skin, E hair, F leather and wood.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastcond.data.sprite_canvas import SIZE, Colour, Dice, Grid, layer, outline, paint, placed, shifted, stamp
from fastcond.data.sprite_heroes import GOLD, GREYS, HAIRS, TRIMS, hero_colours

# --- heads
FACE = layer(
    """
    ...DDDD..
    ..DDDD4D.
    ..DDDDDD.
    .dDDDkDD.
    .ddDDkDDD
    .ddDDDDD.
    ..ddDDd..
    """, 3, 2)  # fmt: skip
SHORT_HAIR = layer(
    """
    ..EEEEE.
    .E55EEEE
    EE5EEEEE
    EEEEEeee
    EEEe....
    eEe.....
    .e......
    """, 3, 1)  # fmt: skip
PONYTAIL = layer(
    """
    ....EEEEE.
    ...E55EEEE
    .EEE5EEEEE
    EEBEEEEeee
    E.bEEe....
    Ee.Ee.....
    Ee........
    .e........
    """, 1, 1)  # fmt: skip
LONG_HAIR = layer(
    """
    ...EEEEE.
    ..E55EEEE
    .EE5EEEEE
    .E5EEEeee
    .EEEEe...
    EEEEe....
    EEEee....
    EEEe.....
    Eee......
    .e.......
    """, 2, 1)  # fmt: skip
GREAT_HELM = layer(
    """
    ..CCCCC..
    .C33CCCc.
    C33CCCCcc
    C3CCCCCcc
    CCCCkkwkk
    CCCCCccCc
    cCCcCsCsc
    .cccccccc
    """, 3, 1)  # fmt: skip
PLUME = layer(
    """
    ..BBBB..
    .B22BBB.
    BBBb....
    BBb.....
    Bb......
    b.......
    """, 1, 0)  # fmt: skip
OPEN_HELM = layer(
    """
    ..CCCCC.
    .C33CCCc
    C33CCCcc
    Csssssss
    CCCc....
    cCCc....
    .cCc....
    ..cc....
    """, 3, 1)  # fmt: skip
HOOD = layer(
    """
    ...AAAA.
    ..A11AAA
    .A11AAaa
    .A1AAaq.
    AAAAaq..
    AAAAa...
    AAAaa...
    .Aaaaa..
    """, 2, 1)  # fmt: skip
MASK = layer(
    """
    BBBBB
    .bBb.
    """, 6, 7)  # fmt: skip
WIZARD_HAT = layer(
    """
    .Aa.........
    .A1AAa......
    ...A11AAa...
    ...bBB2BBB..
    .A11AAAAAAa.
    """, 1, 0)  # fmt: skip
BEARD = layer(
    """
    E......
    EEEEEEE
    eEE5EEE
    .eEE5EE
    ...eEE.
    ....eE.
    """, 4, 6)  # fmt: skip
CROWN = layer(
    """
    2.2B.B.b
    2BBBBBBb
    bBBBABbb
    """, 3, 1)  # fmt: skip
HEADBAND = layer(
    """
    ..BB2BBBB
    bb.......
    b........
    """, 2, 4)  # fmt: skip

# --- bodies, without the leading arm
TUNIC = layer(
    """
    .aAAA1.
    aaAA11A
    .fFFFBF
    .aAAAAA
    """, 4, 9)  # fmt: skip
PLATE = layer(
    """
    .CC3Cc.
    cC33CCA
    .csssA1
    .aaAAAA
    """, 4, 9)  # fmt: skip
ROBE = layer(
    """
    .aAAA1.
    aaAA1BA
    .aAA1BA
    .aAA1BA
    aAAAA1B
    bBBBBBB
    """, 4, 9)  # fmt: skip
LEATHER = layer(
    """
    .aFF6F.
    aaFF6FF
    .bBBBBB
    .aaAAAA
    """, 4, 9)  # fmt: skip
CAPE = layer(
    """
    ...BB
    ..BBb
    .BB2b
    BB2Bb
    BBBb.
    bb...
    """, 1, 9)  # fmt: skip

# --- legs: three phases of a walk
LEGS = (
    layer(
        """
        .ff..FF..
        ff....FF.
        f.....FFF
        """, 4, 12),
    layer(
        """
        ..fFF..
        .ffFF..
        ...FFF.
        """, 4, 12),
    layer(
        """
        ..fFFF..
        ..f..F..
        .fF..FF.
        """, 4, 12),
)  # fmt: skip
HEMS = (  # the feet under a robe
    layer("ff....FFF", 3, 14),
    layer("FFF", 6, 14),
    layer("ff.FFF", 4, 14),
)

# --- the leading arm with what it holds
SWORD = layer(
    """
    .....33
    ....3C.
    ...3C..
    .BCc...
    ADb....
    AFBb...
    """, 8, 6, outlined=True)  # fmt: skip
SWORD_UP = layer(
    """
    ....3.
    ....3.
    ....C.
    ....C.
    ....C.
    ...BBb
    AAADD.
    .aaaf.
    """, 8, 4, outlined=True)  # fmt: skip
AXE = layer(
    """
    ...CFC.
    ...CF3C
    ...cFCC
    ....F..
    ....F..
    AAADD..
    .aaaF..
    ....f..
    """, 8, 5, outlined=True)  # fmt: skip
STAFF = layer(
    """
    ...2B.
    ...Bb.
    ...F..
    ...F..
    ...F..
    ...f..
    ...F..
    AAADd.
    .aaF..
    ...F..
    ...f..
    ...F..
    """, 9, 3, outlined=True)  # fmt: skip
BOW = layer(
    """
    ...F..
    ....F.
    .....F
    .....F
    AADCC3
    .aa..F
    .....F
    ....F.
    ...F..
    """, 9, 5, outlined=True)  # fmt: skip
DAGGER = layer(
    """
    ...B...
    AADBC33
    .aab...
    """, 8, 10, outlined=True)  # fmt: skip
SHIELD = layer(
    """
    .B2.
    BBBb
    B1Ab
    BAAb
    BBBb
    .bb.
    """, 9, 8, outlined=True)  # fmt: skip


@dataclass(frozen=True)
class SideHero:
    """What one archetype may wear in profile; an entry is picked from each list, None is nothing."""

    body: Grid
    heads: tuple[tuple[Grid, ...], ...]
    hands: tuple[Grid, ...]
    capes: tuple[Grid | None, ...] = (None,)
    cloth: str = "bright"
    trims: tuple[Colour, ...] = TRIMS
    hairs: tuple[Colour, ...] = HAIRS
    head_drop: int = 0


SIDE_HEROES: dict[str, SideHero] = {
    "knight": SideHero(PLATE, ((GREAT_HELM,), (PLUME, GREAT_HELM)), (SWORD, SWORD_UP), (None, CAPE)),
    "warrior": SideHero(PLATE, ((OPEN_HELM,), (OPEN_HELM, BEARD)), (AXE, SHIELD)),
    "wizard": SideHero(ROBE, ((WIZARD_HAT, BEARD), (WIZARD_HAT,)), (STAFF,), cloth="mage", hairs=GREYS, head_drop=1),
    "ranger": SideHero(LEATHER, ((HOOD,),), (BOW,), (None, CAPE), cloth="forest"),
    "rogue": SideHero(LEATHER, ((HOOD, MASK),), (DAGGER,), cloth="shade"),
    "monarch": SideHero(ROBE, ((LONG_HAIR, CROWN), (SHORT_HAIR, CROWN, BEARD)), (SWORD_UP, STAFF), (CAPE,), "royal", GOLD),
    "priestess": SideHero(ROBE, ((LONG_HAIR,), (LONG_HAIR, HEADBAND)), (STAFF,), cloth="holy"),
    "squire": SideHero(TUNIC, ((SHORT_HAIR,), (SHORT_HAIR, HEADBAND), (PONYTAIL,)), (SWORD, SHIELD, SWORD_UP), (None, CAPE)),
}


def draw_side_hero(name: str, dice: Dice) -> NDArray[np.uint8]:
    """A hero of the named archetype walking to the right, RGB uint8 [16, 16, 3]."""
    hero = SIDE_HEROES[name]
    grid = np.zeros((SIZE, SIZE), np.uint8)
    phase = dice.below(3)
    stamp(grid, dice.pick(hero.capes), HEMS[phase] if hero.body is ROBE else LEGS[phase], hero.body)
    nod = hero.head_drop + dice.chance(35)
    for part in (FACE, *dice.pick(hero.heads)):
        stamp(grid, shifted(part, 0, nod))
    stamp(grid, shifted(dice.pick(hero.hands), 0, -dice.below(2)))
    grid = outline(placed(grid, dice))
    return paint(grid, hero_colours(dice, hero.cloth, hero.trims, hero.hairs))
