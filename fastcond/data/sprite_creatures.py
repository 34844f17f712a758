"""Non-heroes: monsters, each with a few poses.

Ramps: A body, B second colour (eyes, membranes, caps, marks), C belly or cloth.
"""

import numpy as np
from numpy.typing import NDArray

from fastcond.data.sprite_canvas import Colour, Dice, Figure, paint, poses

SLIMES = poses(
    """
    ..............  .....AA.......
    ..............  ....A1AA......
    .....AAAA.....  ...A11AAAA....
    ...AA11AAAA...  ..A11AAAAAA...
    ..A111AAAAAA..  ..A1AAAAAAAa..
    .A11AAAAAAAAa.  .A1AAAAAAAAa..
    .A1AAAAAAAAAa.  .AAwkAAwkAAaa.
    AAAwkAAAwkAAaa  .AAkkAAkkAAaa.
    AAAkkAAAkkAAaa  .AAAAAAAAAAaa.
    AAAAAAAAAAAAaa  .aAAAwwwAAAaa.
    aAAAAAkkAAAaaa  .aAAAAAAAAaaa.
    .aaaaaaaaaaaa.  ..aaaaaaaaaa..
    """,
    y=3,
)
BATS = poses(
    """
    ..............  ....A....A....
    A............A  ....AA..AA....
    BA..A....A..AB  ...A11AAAAA...
    BBA.AA..AA.ABB  .BBAwkAAkwABB.
    BBBA11AAAAABBB  BBBAkkAAkkABBB
    BBBAwkAAkwABBB  BBBAAAAAAAaBBB
    bBBAkkAAkkABBb  BBbbAwaawAbbBB
    bbBAAAAAAAaBbb  Bb...aaaa...bB
    b.bbAwaawAbb.b  b.....aa.....b
    b....aaaa....b  b............b
    """,
    y=3,
)
GHOSTS = poses(
    """
    ....AAAAA.....  ....AAAAA.....
    ..AA11AAAAA...  ..AA11AAAAA...
    .AA1AAAAAAAa..  .AA1AAAAAAAa..
    .A1AAAAAAAAa..  .A1AAAAAAAAa..
    .A1AkkAAkkAa..  .A1kkAAkkAAa..
    .A1AkkAAkkAa..  .A1kkAAkkAAa..
    AAAAkkAAkkAaa.  .AAAAAAAAAAa..
    A.AAAAAAAAA.a.  .AAAAkkkAAAaa.
    ..AAAAkkAAAa..  AAAAAkkkAAAAa.
    ..AAAAkkAAAa..  A.AAAAAAAAaa..
    ..AAAAAAAAaa..  ..aAAAAAAAa...
    ..AAaAAAaAaa..  ....aAAAAaa...
    ..A..AA..aa...  ......aAAaaa..
    """,
    y=2,
)
SPIDERS = poses(
    """
    ..k........k..  .k..........k.
    .k.k......k.k.  k.k.k....k.k.k
    k..kkAAAAkk..k  k..k.AAAA.k..k
    k.k.A11AAA.k.k  ..kkA11AAAkk..
    ..kA11AAAAAk..  .k.A11ABAAA.k.
    .k.A1AAAAAa.k.  k.kA1ABBBAak.k
    k.kABAAAABak.k  k..ABAABAABa.k
    k..BkBAABkB..k  ..kBkBAABkBk..
    .kkABABBABakk.  .k.ABAAAABa.k.
    k..aAAAAAAa..k  k.kaAAAAAaak.k
    k.k.aaaaaa.k.k  k.k.aaaaaa.k.k
    ..k..w..w..k..  ..k..w..w..k..
    """,
    y=2,
)
SNAKES = poses(
    """
    ....AAAAA.....  .....AAAAA....
    ...A11AAAa....  ....A11AkAA...
    ...wkAAwka....  ....A1AAkAAB.B
    ..AAkAAAkaa...  ....AACCCCCBB.
    .A1AAAAAAAaa..  ...AAAa.....B.
    .A1AkBBkAAaa..  .AAAAa........
    .AAACBBCAAaa..  A1AAa.........
    ..AACCCCAaa...  A1Aa.AAAAA....
    ....ACCAa.....  AAAAAA11AAAA..
    ..AAACCAaAAa..  .aAAAAaaaA1Aa.
    .A11ACCAaAAAa.  ...aaa....AAa.
    A1AAaaaaaAAAa.  A...AAAAAAAaa.
    AAqqqqqqqqqaa.  AAAA1AAAAAaa..
    .aaaaaaaaaaa..  .aaaaaaaaa....
    """,
    y=1,
)
SKELETONS = poses(
    """
    ....AAAAAA....  ....AAAAAA....
    ...A11AAAAA...  ...A11AAAAA.A.
    ...A1AAAAAA...  ...A1AAAAAA.A.
    ...kkkAAkkk...  ...kkkAAkkk.A.
    ...kBkAAkBk...  ...kBkAAkBk.A.
    ...AAAkkAAa...  ...AAAkkAAa.A.
    ....AAAAAa....  ....AAAAAa.a..
    ....wkwkwk....  ....wkwkwk.a..
    .....aaaa.....  .....aaaa.a...
    ..AA.wwww.Aa..  ..AA.wwwwa....
    .A..kkAAkk..a.  .A..kkAAkk....
    .A..wwwwww..a.  .A..wwwwww....
    ....kkAAkk....  ....kkAAkk....
    ....AA..aa....  ...AA....aa...
    """,
    y=1,
)
GOBLINS = poses(
    """
    ....AAAAAA....  A............A
    ...A11AAAAA...  AA..AAAAAA..Aa
    A..A1AAAAAa..A  .AAA11AAAAAAa.
    AA1AAAAAAAAaAa  ..AA1AAAAAAa..
    .AAkBBAABBkaa.  ...kBBAABBk...
    ..AABkAAkBAa..  ...ABkAAkBa...
    ...AAAaaAAa...  ...AAAaaAAa...
    ...AwkkkkwA...  ...AkwkkwkA...
    ....aaaaaa....  A...akkkka...A
    ..AACCCCCcAA..  AA.CCCCCCcc.AA
    ..A.CcCCcc.a..  .AACcCCCccAaa.
    ....CCccCc....  ....CCccCc....
    ....AA..aa....  ...AA....aa...
    """,
    y=2,
)
BEHOLDERS = poses(
    """
    .B..B...B..B..  B....B..B....B
    .A..A...A..A..  A....A..A....A
    ..A.AAAAA.A...  .AA.AAAAAA.AA.
    ...AA1AAAAA...  ..AAA1AAAAAA..
    ..A11wwwwAAA..  .A11AwwwwAAAa.
    .A1wwwwwwwwAA.  .A1wwwwwwwwAa.
    .A1wwBBBBwwAa.  .AAwwwBBBBwwa.
    .AwwBBkkwBwwa.  .AwwwBBkkwBwa.
    .AwwBBkkkBwwa.  .AwwwBBkkkBwa.
    .AAwwBBBBwwaa.  .AAwwwBBBBwaa.
    ..AAwwwwwwaa..  .AAkwkwkwkaaa.
    ...AAkwkwaa...  ..AAkkkkkkaa..
    ....aaaaaa....  ....aaaaaa....
    """,
    y=2,
)
MUSHROOMS = poses(
    """
    .....BBBB.....  .....BBB......
    ...BB2BBBBB...  ...BB22BBB....
    ..B2ww2BBBwB..  ..BB2BBwwBBb..
    .BB2wwBBBBwwB.  .BwwBBBwwBBBb.
    BBBBBBBwwBBBBb  BBwwBBBBBBBwwb
    BBwBBBBwwBBBbb  BBBBBBwwBBBwwb
    bbbbbbbbbbbbbb  bbbbbbwwbbbbbb
    ..aAAAAAAAAa..  ..qbbbbbbbbq..
    ...AkAAAAkA...  ...AAAAAAAa...
    ...AAkAAkAa...  ..AAAAAAAAAa..
    ...AAkAAkAa...  ..A1AkAAkAAa..
    ...AAAAAAAa...  ..A1AkAAkAAa..
    ....aakkaa....  ...AAAAAAaa...
    ...CC....cc...  ..CCC....ccc..
    """,
    y=1,
)
DRAGONS = poses(
    """
    ...C..C.......  ...C..C....B..
    ...CA.CA......  ...CA.CA..BBB.
    ..AAAAAAA...B.  ..AAAAAAABBBBB
    .AkwA1AAAa.BBB  .AkwA1AAABBBb.
    .AkkAAAAAaBBBB  .AkkAAAAABBb..
    AAAAAAAAAaBBBb  AAAAAAAAABb...
    kAAAaAAAABBBb.  kAAAaAAAABb...
    .wAw.aAAABBb.A  .wAw.aAAAAa..A
    .....CAAAAAa.A  .....CAAAAAa.A
    ....CC1AAAAaAa  ....CC1AAAAaAa
    ....CCAAAAAaa.  ....CCAAAAAaa.
    ....cCAAaAAa..  ....cCAAaAAa..
    .....AA.aAa...  ....AA...aAa..
    ....AAA.Aaa...  ...AAA..aAA...
    """,
    y=1,
)

RED: Colour = (0, 0.80, 0.88)
AMBER: Colour = (46, 0.80, 0.98)
GREEN: Colour = (95, 0.70, 0.88)
CYAN: Colour = (185, 0.80, 0.95)
CREAM: Colour = (44, 0.26, 0.96)
BROWN: Colour = (24, 0.55, 0.52)

CREATURES: dict[str, Figure] = {
    "slime": Figure(SLIMES, (((120, 0.62, 0.80),), ((200, 0.64, 0.90),), ((325, 0.52, 0.92),), ((32, 0.78, 0.94),))),
    "bat": Figure(
        BATS,
        (
            ((268, 0.46, 0.52), (325, 0.52, 0.68)),
            ((235, 0.36, 0.46), (258, 0.44, 0.68)),
            ((12, 0.42, 0.46), (8, 0.62, 0.70)),
        ),
    ),
    "ghost": Figure(GHOSTS, (((205, 0.16, 0.97),), ((260, 0.18, 0.96),), ((150, 0.16, 0.95),))),
    "spider": Figure(SPIDERS, (((255, 0.25, 0.36), RED), ((16, 0.50, 0.44), AMBER), ((285, 0.42, 0.46), GREEN))),
    "snake": Figure(
        SNAKES,
        (
            ((110, 0.60, 0.66), RED, CREAM),
            ((45, 0.68, 0.82), RED, CREAM),
            ((178, 0.58, 0.66), RED, CREAM),
            ((285, 0.44, 0.66), RED, CREAM),
        ),
    ),
    "skeleton": Figure(SKELETONS, (((44, 0.14, 0.95), RED), ((210, 0.10, 0.92), CYAN), ((48, 0.26, 0.88), GREEN))),
    "goblin": Figure(
        GOBLINS,
        (
            ((100, 0.58, 0.66), AMBER, BROWN),
            ((78, 0.60, 0.68), RED, (265, 0.36, 0.50)),
            ((140, 0.48, 0.58), AMBER, (8, 0.62, 0.58)),
        ),
    ),
    "beholder": Figure(
        BEHOLDERS,
        (((345, 0.58, 0.78), (205, 0.72, 0.88)), ((282, 0.50, 0.66), GREEN), ((165, 0.54, 0.62), AMBER)),
    ),
    "mushroom": Figure(
        MUSHROOMS,
        (
            (CREAM, (2, 0.78, 0.84), BROWN),
            (CREAM, (278, 0.52, 0.72), BROWN),
            (CREAM, (208, 0.66, 0.80), BROWN),
            (CREAM, (26, 0.74, 0.84), BROWN),
        ),
    ),
    "dragon": Figure(
        DRAGONS,
        (
            ((4, 0.74, 0.76), (28, 0.76, 0.90), CREAM),
            ((132, 0.58, 0.62), (75, 0.58, 0.80), CREAM),
            ((225, 0.56, 0.74), (265, 0.46, 0.80), CREAM),
        ),
    ),
}


def draw_creature(name: str, dice: Dice) -> NDArray[np.uint8]:
    """A monster of the named archetype, RGB uint8 [16, 16, 3]."""
    creature = CREATURES[name]
    return paint(creature.pose(dice), creature.ramps(dice))
