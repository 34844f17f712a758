"""Heroes seen from the front: a body, a head, something on it, and something in each hand.

Ramps: A cloth, B trim, C metal, D skin, E hair, F leather and wood.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastcond.data.sprite_canvas import SIZE, Colour, Dice, Grid, layer, near, outline, paint, placed, shifted, stamp

# --- colours, shared with the heroes in profile
CLOTHS: dict[str, tuple[Colour, ...]] = {
    "bright": ((355, 0.78, 0.80), (218, 0.72, 0.82), (135, 0.62, 0.62), (278, 0.55, 0.70), (28, 0.80, 0.88)),
    "mage": ((228, 0.70, 0.72), (275, 0.62, 0.66), (188, 0.72, 0.64), (345, 0.68, 0.62)),
    "forest": ((125, 0.55, 0.52), (95, 0.52, 0.55), (160, 0.50, 0.50), (70, 0.48, 0.56)),
    "shade": ((250, 0.28, 0.40), (212, 0.34, 0.42), (330, 0.34, 0.40), (280, 0.36, 0.42)),
    "royal": ((352, 0.80, 0.70), (265, 0.62, 0.62), (222, 0.74, 0.66)),
    "holy": ((42, 0.12, 0.95), (205, 0.14, 0.94), (330, 0.16, 0.95)),
}
TRIMS: tuple[Colour, ...] = ((44, 0.78, 0.94), (0, 0.74, 0.84), (205, 0.62, 0.90), (45, 0.12, 0.94))
GOLD: tuple[Colour, ...] = ((44, 0.78, 0.95),)
STEEL: tuple[Colour, ...] = ((215, 0.14, 0.80), (222, 0.22, 0.70), (200, 0.10, 0.88), (44, 0.56, 0.92))
SKINS: tuple[Colour, ...] = ((26, 0.30, 0.98), (24, 0.38, 0.92), (24, 0.48, 0.76), (22, 0.52, 0.64), (20, 0.52, 0.54))
HAIRS: tuple[Colour, ...] = (
    (26, 0.62, 0.36), (46, 0.66, 0.94), (12, 0.80, 0.76), (250, 0.22, 0.28), (205, 0.50, 0.80),
)  # fmt: skip
GREYS: tuple[Colour, ...] = ((220, 0.06, 0.90), (40, 0.08, 0.86), (220, 0.12, 0.70))
LEATHERS: tuple[Colour, ...] = ((26, 0.58, 0.56), (20, 0.56, 0.44), (34, 0.52, 0.62))

# --- heads
FACE = layer(
    """
    .DDDDDD.
    DD4DDDDD
    DDDDDDDD
    DDkDDkDD
    DDkDDkDD
    dDDDDDDd
    .ddDDdd.
    """, 4, 2)  # fmt: skip
SHORT_HAIR = layer(
    """
    ..EEEEE.
    .E55EEEE
    EE5EEEEe
    EEeEEeEe
    E......e
    """, 4, 1)  # fmt: skip
SPIKY_HAIR = layer(
    """
    E..E.E..E.
    EE.EEEE.Ee
    .E5EEEEEe.
    .E5EEEEEe.
    EEEeEeEeee
    .E......e.
    """, 3, 1)  # fmt: skip
LONG_HAIR = layer(
    """
    ...EEEE...
    ..E55EEE..
    .EE5EEEEe.
    .E5EeEEee.
    .Ee....ee.
    .E......e.
    EE......ee
    EE......ee
    Ee......ee
    .e......e.
    """, 3, 1)  # fmt: skip
GREAT_HELM = layer(
    """
    ..CCCC..
    .C33CCc.
    C33CCCcc
    C3CCCCcc
    Ckwkkwkc
    Csskksss
    CCCssccc
    .CCsscc.
    """, 4, 1)  # fmt: skip
PLUME = layer(
    """
    .BB..
    BB2B.
    .bBBb
    """, 5, 0)  # fmt: skip
OPEN_HELM = layer(
    """
    ..CCCC..
    .C33CCc.
    C33CCCcc
    Cssssssc
    Cc....cc
    C......c
    cc....cc
    """, 4, 1)  # fmt: skip
HORNS = layer(
    """
    w............w
    ww..........ww
    cww........wwc
    .cc........cc.
    """, 1, 1)  # fmt: skip
HOOD = layer(
    """
    ..AAAA..
    .A11AAa.
    A11AAAaa
    A1aqqaAa
    Aq....qa
    A......a
    A......a
    aa....aa
    """, 4, 1)  # fmt: skip
MASK = layer(
    """
    BBBBBB
    .bBBb.
    """, 5, 7)  # fmt: skip
WIZARD_HAT = layer(
    """
    .......Aa...
    .....A1Aa...
    ....A11AAa..
    ...bBB2BBb..
    .A11AAAAAaa.
    """, 2, 0)  # fmt: skip
BEARD = layer(
    """
    E......e
    EEEEEEee
    E5EddEee
    .E5EEee.
    ..EEee..
    ...Ee...
    """, 4, 6)  # fmt: skip
CROWN = layer(
    """
    2..22..B
    2BBBBBBb
    bBBABBbb
    """, 4, 1)  # fmt: skip
HEADBAND = layer("BB2BBBBb", 4, 4)
CIRCLET = layer("b2BABBbb", 4, 3)

# --- bodies
TUNIC = layer(
    """
    .AAa11aAa.
    AAaA1AAaAa
    DDaFFBFadd
    ..AAAaAa..
    ..ff..ff..
    ..FF..Ff..
    """, 3, 9)  # fmt: skip
PLATE = layer(
    """
    C3CsCCsCCc
    C3sA1AAsCc
    CcsA1Aascc
    ..CBBBbc..
    ..Cc..cc..
    ..CC..cc..
    """, 3, 9)  # fmt: skip
ROBE = layer(
    """
    .AAa11aAa.
    AA1ABBAaAa
    DaaABBaaad
    .A1ABBAAa.
    .A1ABBAAa.
    .BBBbbBBb.
    """, 3, 9)  # fmt: skip
LEATHER = layer(
    """
    .AAaFFaAa.
    AAFF6FFfAa
    DDfFFFffdd
    ..AbBBba..
    ..aa..aa..
    ..FF..Ff..
    """, 3, 9)  # fmt: skip
BARE_CHEST = layer(
    """
    .DDdDDdDd.
    D4DFDDddDd
    DDdDFddddd
    ..EFF5Ee..
    ..Dd..dd..
    ..FF..Ff..
    """, 3, 9)  # fmt: skip
CAPE = layer(
    """
    .BBBBBBBBb.
    BB2BBBBBBbb
    B2......Bbb
    B2......Bbb
    Bb......bbb
    .b......bb.
    """, 2, 9)  # fmt: skip

# --- hands
SWORD = layer(
    """
    .3.
    .3.
    .C.
    .C.
    .C.
    .C.
    BBb
    .F.
    """, 12, 4, outlined=True)  # fmt: skip
DAGGER = layer(
    """
    .3.
    .C.
    .C.
    BBb
    .F.
    """, 12, 7, outlined=True)  # fmt: skip
STAFF = layer(
    """
    2B
    Bb
    F.
    F.
    F.
    F.
    F.
    f.
    F.
    F.
    F.
    f.
    """, 13, 3, outlined=True)  # fmt: skip
AXE = layer(
    """
    .F.
    3FC
    3Fc
    CFc
    .F.
    .F.
    .f.
    .F.
    .F.
    """, 12, 4, outlined=True)  # fmt: skip
BOW = layer(
    """
    F..
    cF.
    c.F
    c.F
    D.F
    c.F
    cF.
    f..
    """, 12, 6, outlined=True)  # fmt: skip
ROUND_SHIELD = layer(
    """
    .BB2.
    BF6Fb
    BFCFb
    bfFfb
    .bbb.
    """, 1, 9, outlined=True)  # fmt: skip
KITE_SHIELD = layer(
    """
    BBBBB
    B1ABb
    BAAAb
    BBAbb
    .Bbb.
    """, 1, 9, outlined=True)  # fmt: skip


@dataclass(frozen=True)
class Hero:
    """What one archetype may wear; an entry is picked from each list, None is nothing."""

    body: Grid
    heads: tuple[tuple[Grid, ...], ...]
    weapons: tuple[Grid | None, ...]
    shields: tuple[Grid | None, ...] = (None,)
    capes: tuple[Grid | None, ...] = (None,)
    cloth: str = "bright"
    trims: tuple[Colour, ...] = TRIMS
    hairs: tuple[Colour, ...] = HAIRS
    head_drop: int = 0  # a tall hat pushes the head down


HEROES: dict[str, Hero] = {
    "knight": Hero(PLATE, ((GREAT_HELM,), (GREAT_HELM, PLUME)), (SWORD,), (KITE_SHIELD, None), (None, CAPE)),
    "warrior": Hero(PLATE, ((OPEN_HELM,),), (SWORD, AXE), (ROUND_SHIELD, None)),
    "viking": Hero(TUNIC, ((OPEN_HELM, HORNS, BEARD),), (AXE,), (ROUND_SHIELD,)),
    "wizard": Hero(ROBE, ((WIZARD_HAT, BEARD), (WIZARD_HAT,)), (STAFF,), cloth="mage", hairs=GREYS, head_drop=1),
    "ranger": Hero(LEATHER, ((HOOD,),), (BOW,), cloth="forest"),
    "rogue": Hero(LEATHER, ((HOOD, MASK),), (DAGGER,), cloth="shade"),
    "monarch": Hero(
        ROBE, ((LONG_HAIR, CROWN), (SHORT_HAIR, CROWN, BEARD)), (None, STAFF), capes=(CAPE,), cloth="royal", trims=GOLD
    ),
    "priestess": Hero(ROBE, ((LONG_HAIR,), (LONG_HAIR, CIRCLET)), (STAFF,), cloth="holy"),
    "barbarian": Hero(BARE_CHEST, ((SPIKY_HAIR,), (SPIKY_HAIR, HEADBAND)), (AXE, SWORD)),
    "squire": Hero(
        TUNIC,
        ((SHORT_HAIR,), (SPIKY_HAIR, HEADBAND), (LONG_HAIR, HEADBAND)),
        (SWORD,),
        (None, ROUND_SHIELD),
        (None, CAPE),
    ),
}


def hero_colours(dice: Dice, cloth: str, trims: tuple[Colour, ...], hairs: tuple[Colour, ...]) -> list[Colour]:
    """The six ramps of a hero: cloth, trim, metal, skin, hair, leather."""
    return [
        near(dice.pick(CLOTHS[cloth]), dice, 12),
        near(dice.pick(trims), dice),
        near(dice.pick(STEEL), dice),
        near(dice.pick(SKINS), dice, 3),
        near(dice.pick(hairs), dice),
        near(dice.pick(LEATHERS), dice),
    ]


def draw_hero(name: str, dice: Dice) -> NDArray[np.uint8]:
    """A hero of the named archetype, RGB uint8 [16, 16, 3]."""
    hero = HEROES[name]
    grid = np.zeros((SIZE, SIZE), np.uint8)
    stamp(grid, dice.pick(hero.capes), hero.body)
    nod = hero.head_drop + dice.chance(35)  # breathing: the head sinks by a pixel
    for part in (FACE, *dice.pick(hero.heads)):
        stamp(grid, shifted(part, 0, nod))
    lift = -dice.below(2)
    for held in (dice.pick(hero.shields), dice.pick(hero.weapons)):
        if held is not None:
            stamp(grid, shifted(held, 0, lift))
    grid = outline(placed(grid, dice))
    return paint(grid, hero_colours(dice, hero.cloth, hero.trims, hero.hairs))
