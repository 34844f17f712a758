"""Food and drink, in a few shapes each.

Ramps: A the food itself, B its second colour (leaves, icing, liquid), C its third (stems, seeds, crusts, plates).
"""

import numpy as np
from numpy.typing import NDArray

from fastcond.data.sprite_canvas import Colour, Dice, Figure, paint, poses

APPLES = poses(
    """
    .......C......  .......C......
    ......C.BB....  ......C.BB....
    ......CBB2B...  ......CBB2B...
    ..AAA.c.BB....  ..AAA.c.BB....
    .A11AAcAAAAa..  .A11AAcAAA....
    A111AAAAAAAAa.  A111AAAAA33...
    A11AAAAAAAAAa.  A11AAAAA33....
    A1AAAAAAAAAaa.  A1AAAAAA333...
    AAAAAAAAAAAaa.  AAAAAAAAA333..
    .AAAAAAAAAaa..  .AAAAAAAAA33a.
    .aAAAAAAAAaa..  .aAAAAAAAAaa..
    ..aAAaaAAaa...  ..aAAaaAAaa...
    ...aa..aaa....  ...aa..aaa....
    """,
    y=2,
)
PEARS = poses(
    """
    .......C......
    ......C.BB....
    .....AcB2B....
    ....A1AABB....
    ....A1AAa.....
    ....A1AAa.....
    ...A11AAAa....
    ..A11AAAAAa...
    .A11AAAAAAAa..
    .A1AAAAAAAAa..
    .AAAAAAAAAaa..
    .AAAAAAAAAaa..
    ..aAAAAAaaa...
    ...aaaaaaa....
    """,
    y=1,
)
CHERRIES = poses(
    """
    ........CBBB..
    .......CcB2BB.
    ......C.c.BB..
    .....C...c....
    ....C....c....
    ....C.....c...
    .AAAcA....c...
    A11AAAa.AAcA..
    A11AAAaA11AAa.
    AAAAAAaA11AAa.
    AAAAAaaAAAAAa.
    .aaaaa.AAAAaa.
    .......aaaaa..
    """,
    y=2,
)
BANANAS = poses(
    """
    ..........Cc..
    ..........CA..
    ..........AA..
    .........A1Aa.
    .........A1Aa.
    ........A11Aa.
    .......A11AAa.
    ......A11AAAa.
    ....AA11AAAa..
    CAAA111AAAAa..
    C111AAAAAaa...
    .AAAAAAaaa....
    ..aaaaaa......
    """,
    y=1,
)
ORANGES = poses(
    """
    ..............  ....AAAAAA....
    ..............  ..AA333333AA..
    ..............  .A33BB3BB33Aa.
    A333333333333A  .A3BBB3BBB3Aa.
    A3BBBB33BBBB3A  A3B2BB3BB2B3Aa
    A3B2B3BB3B2B3A  A3BBBB3BBBB3Aa
    A3BB3BBBB3BB3a  A33333333333Aa
    .A333B2BB333a.  A3BBBB3BBBB3Aa
    .A33BBBBBB33a.  A3B2BB3BB2B3Aa
    ..A33BBBB33a..  .A3BBB3BBB3Aa.
    ...AA3333aa...  .A33BB3BB33Aa.
    .....aaaa.....  ..AA333333Aa..
    ..............  ....aaaaaa....
    """,
    y=1,
)
GRAPES = poses(
    """
    .......C.BB...
    ......CCBB2B..
    ..AAa.CcAAa...
    .A1AAaA1AAaA..
    .AAAaqAAAaAAa.
    .aAAaAAaaqAAa.
    ..qA1AAaA1Aa..
    ..aAAAaqAAAa..
    ...aAaA1AAaq..
    ....qqAAAa....
    ....A1AaAa....
    ....AAAaq.....
    .....aaa......
    """,
    y=1,
)
STRAWBERRIES = poses(
    """
    .....CB.......
    ..BB.BB.BB....
    .BB2BBBBBbb...
    ..ABBbABBbA...
    .A1bAAAAbAAa..
    A11AA3AAAA3Aa.
    A13AAAA3AAAAa.
    AAAAA3AAAA3aa.
    .AA3AAAA3AAa..
    .AAAAA3AAAaa..
    ..AA3AAA3aa...
    ...AAA3Aaa....
    ....aAaaa.....
    .....aaa......
    """,
    y=1,
)
BREADS = poses(
    """
    ..............  .........AAAA.
    ..AAAAA..AAAA.  .......AA11AAa
    .A1111AAA11AAa  ......A12AA2Aa
    A11AAAAAAAAAAa  .....A1A2A2Aaa
    A1AAAAAAAAAAaa  ...AA12AA2AAa.
    AAAAAAAAAAAAaa  ..A11A2A2AAaa.
    .aBBBBBBBBBBa.  .A12AA2AAAaa..
    .aB2BBBBBBBBa.  A11A2A2AAaa...
    .aBBBBB2BBBba.  A1AA2AAAaa....
    .aBB2BBBBBBba.  AAA2AAaaa.....
    .aBBBBBBB2Bba.  aAAAaaa.......
    .aaaaaaaaaaaa.  .aaaa.........
    """,
    y=2,
)
CHEESES = poses(
    """
    .........AAA..
    .......AA11AA.
    .....AA1111AAA
    ...AA11111aAAA
    .AA111aa11AAAA
    A11111aa1111AA
    aaaaaaaaaaaaaa
    AAAAAaaAAAAAAA
    AaaAAaaAAAaaAA
    AaaAAAAAAAaaAA
    AAAAAAAaAAAAAA
    aaaaaaaaaaaaaa
    """,
    y=2,
)
DRUMSTICKS = poses(
    """
    ......AAAA....
    ....AA1111AA..
    ...A11111AAAa.
    ...A111AAAAAa.
    ..A11AAAAAAAaa
    ..A1AAAAAAAAaa
    ..AAAAAAAAAAaa
    ..AAAAAAAAAaa.
    ...AAAAAAAaaa.
    ..C3aAAAaaaa..
    33Ccaaaaa.....
    3CCc..........
    .Cc...........
    """,
    y=1,
)
FISHES = poses(
    """
    ......BBB.....
    .....BBBb.....
    ...AAAAAAa...B
    ..A11111AAa.BB
    .A11AAAA1AABBb
    .AwkAAaAAAABB.
    AAkkAaAA1AABB.
    AAAAAaAAAAABBb
    .aAAAAaAAAa.BB
    ..C3CCCCaa...B
    ...CCBBa......
    .....Bb.......
    """,
    y=2,
)
EGGS = poses(
    """
    ....33333.....
    ..33333333....
    .3333AAAA333..
    .333A11AAA333.
    3333A1AAAA333.
    3333AAAAAa3333
    .333AAAAaa333C
    .3333aaaa3333C
    ..33333333333C
    ..3333333333C.
    .33333333CCC..
    .C333CCCCC....
    ..CCC.........
    """,
    y=1,
)
CAKES = poses(
    """
    .......AA.....  ......AA......
    ......A1AA....  .....A1AA.....
    ......AAAa....  ...BBBAaBB....
    ....BBBaaBB...  ..B22BBBBBBb..
    ..BB22BBBBBBB.  .B2BBBBBBBBBb.
    .B22BBBBBBBBBb  .BBBBBBBBBBBb.
    .bBBBBBBBBBBbb  BBBbbBBBbbBBBb
    .CbBBbBBBbBbCc  bBbbbbbbbbbbbb
    .C3bbC3bbCbCCc  .CcCcCcCcCcCc.
    .aaaaaaaaaaaaa  .CcCcCcCcCcCc.
    .C33CCCCCCCCCc  ..cCcCcCcCcc..
    .CCCCCCCCCCCcc  ..cCcCcCcCcc..
    .cccccccccccc.  ..cccccccccc..
    """,
    y=1,
)
POTIONS = poses(
    """
    .....CCCC.....  .....CCC......
    .....C3Cc.....  .....CCc......
    ....BBBBBB....  ....BBBBB.....
    .....B2bB.....  .....B2B......
    .....B2bB.....  .....B2B......
    ....BB2bBB....  .....B2B......
    ...B22bbbBB...  ....BB2BB.....
    ..BA11AAAAAB..  ....B2bbB.....
    ..A11AAAAAAa..  ...BA1AAAB....
    ..A1AAAA1AAa..  ...A1AA1Aa....
    ..AAAAAAAAaa..  ..A11AAAAAa...
    ..AAA1AAAAaa..  ..A1AAA1AAa...
    ...aAAAAAaa...  .AAAAAAAAAaa..
    ....aaaaaa....  .aaaaaaaaaaa..
    """,
    y=1,
)

LEAF: Colour = (108, 0.62, 0.66)
STEM: Colour = (26, 0.60, 0.48)
STALK: Colour = (100, 0.55, 0.46)
PALE: Colour = (44, 0.22, 0.97)
SEED: Colour = (50, 0.70, 0.98)
EGG_WHITE: Colour = (40, 0.10, 0.98)
GLASS: Colour = (200, 0.16, 0.92)
CORK: Colour = (28, 0.50, 0.68)
CRUST: Colour = (32, 0.56, 0.86)
CHERRY: Colour = (354, 0.80, 0.88)

FOODS: dict[str, Figure] = {
    "apple": Figure(APPLES, (((356, 0.80, 0.86), LEAF, STEM), ((84, 0.62, 0.78), LEAF, STEM), ((46, 0.70, 0.92), LEAF, STEM))),
    "pear": Figure(PEARS, (((70, 0.64, 0.82), LEAF, STEM), ((52, 0.66, 0.90), LEAF, STEM), ((96, 0.55, 0.70), LEAF, STEM))),
    "cherry": Figure(CHERRIES, (((352, 0.84, 0.82), LEAF, STALK), ((338, 0.78, 0.58), LEAF, STALK))),
    "banana": Figure(BANANAS, (((50, 0.76, 0.97), LEAF, STEM), ((66, 0.66, 0.86), LEAF, STEM))),
    "orange": Figure(  # and lime, and grapefruit
        ORANGES,
        (
            ((30, 0.88, 0.96), (36, 0.78, 1.0), PALE),
            ((100, 0.62, 0.72), (80, 0.52, 0.90), PALE),
            ((350, 0.60, 0.92), (354, 0.58, 0.94), PALE),
        ),
    ),
    "grapes": Figure(GRAPES, (((284, 0.56, 0.66), LEAF, STEM), ((88, 0.54, 0.80), LEAF, STEM), ((345, 0.66, 0.62), LEAF, STEM))),
    "strawberry": Figure(STRAWBERRIES, (((354, 0.80, 0.90), LEAF, SEED),)),
    "bread": Figure(BREADS, (((30, 0.62, 0.80), (40, 0.34, 0.97)), ((24, 0.62, 0.64), (36, 0.36, 0.90)))),
    "cheese": Figure(CHEESES, (((46, 0.70, 0.97),), ((34, 0.74, 0.97),))),
    "drumstick": Figure(DRUMSTICKS, (((24, 0.68, 0.72), PALE, PALE), ((32, 0.70, 0.84), PALE, PALE))),
    "fish": Figure(
        FISHES,
        (
            ((204, 0.44, 0.80), (220, 0.54, 0.72), PALE),
            ((14, 0.58, 0.92), (6, 0.66, 0.84), PALE),
            ((160, 0.40, 0.72), (176, 0.50, 0.62), PALE),
        ),
    ),
    "egg": Figure(EGGS, (((42, 0.84, 0.99), PALE, EGG_WHITE), ((30, 0.86, 0.98), PALE, EGG_WHITE))),
    "cake": Figure(
        CAKES,
        (
            (CHERRY, (335, 0.34, 0.97), CRUST),
            (CHERRY, (20, 0.60, 0.48), CRUST),
            (CHERRY, (42, 0.16, 0.98), CRUST),
            (CHERRY, (165, 0.34, 0.90), CRUST),
        ),
    ),
    "potion": Figure(
        POTIONS,
        (
            ((352, 0.80, 0.90), GLASS, CORK),
            ((212, 0.76, 0.94), GLASS, CORK),
            ((122, 0.66, 0.80), GLASS, CORK),
            ((282, 0.62, 0.84), GLASS, CORK),
        ),
    ),
}


def draw_food(name: str, dice: Dice) -> NDArray[np.uint8]:
    """A dish or a drink of the named kind, RGB uint8 [16, 16, 3]."""
    food = FOODS[name]
    return paint(food.pose(dice), food.ramps(dice))
