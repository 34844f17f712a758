"""How AdaGN's work is split over a GPU: a pure function of (C, G, HW, dtype, layout, architecture).

The batch size and the number of multiprocessors never enter, so an image has the same bits in any batch and on any card
of an architecture. A tile is [channels, positions], padded to powers of two:

    T0  whole groups, one CTA: forward 1 read + 1 write, backward 2 reads + 1 write
    T1  the same over a cluster of CTAs (sm_90 and newer): the same bytes
    T2  two kernels, of which the second reads again: 2 reads + 1 write, 4 reads + 1 write

Where a tile holds several groups, the reason is memory: a row of channels_last must be long enough for 128-bit accesses and
whole 32-byte sectors, and small groups would each leave most of a CTA idle.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

ACCESS = 16  # bytes of the widest access of a thread
SECTOR = 32  # bytes that the memory moves at least
LINE = 128
WARP = 32

_PER_THREAD = 16  # elements that a thread holds where the tile allows it
_MOST_WARPS = 16
_SMALL_TILE = 4096  # groups are packed up to this many elements
_PACKED_CHANNELS = 64  # of a tile of many groups, whose sums compare its channels in pairs
_FEW_GROUPS, _FEW_GROUPS_CHANNELS = 4, 256  # summed one after another
_MOST_CHANNELS = 16384  # of one group; beyond, the reference
_MOST_SPLITS = 64  # partial sums that the second kernel of T2 merges
_PROGRAMS_AN_IMAGE = 128  # of its first kernel: fewer would leave a large GPU idle at batch 1, more are more to merge
_MOST_CTAS = 8  # of a cluster; 16 would need an opt-in that not every card grants
# Elements of a tile that one CTA holds in registers without spilling: x in the forward, xh and du in the backward. Sums over
# the groups of a packed tile take registers too.
_CAPACITY = {"forward": 32768, "backward": 16384}
_PACKED_CAPACITY = {"forward": 16384, "backward": 8192}


@dataclass(frozen=True)
class Plan:
    """groups of a tile, its padded sides, threads, CTAs of a cluster; T2: tiles along the positions, tiles a program sums."""

    tier: str
    groups: int
    block_c: int
    block_hw: int
    num_warps: int
    num_ctas: int = 1
    tiles: int = 1
    tiles_per_split: int = 1

    @property
    def splits(self) -> int:
        """Programs that share a group's positions in the first kernel of T2."""
        return -(-self.tiles // self.tiles_per_split)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()


@lru_cache(maxsize=4096)
def make_plan(
    channels: int, num_groups: int, positions: int, itemsize: int, channels_last: bool, clusters: bool, backward: bool
) -> Plan | None:
    """The plan of one call; None where only the reference takes it.

    Args: channels: C. num_groups: G. positions: HW. itemsize: bytes of an element. clusters: whether the architecture and the
        compiler take clusters of CTAs. backward: which pass.
    """
    width = channels // num_groups
    if width > _MOST_CHANNELS or channels * positions >= 2**31:
        return None
    direction = "backward" if backward else "forward"
    capacity, packed_capacity = _CAPACITY[direction], _PACKED_CAPACITY[direction]
    wanted = _packing(num_groups, width, positions, itemsize, channels_last)
    block_hw = power_of_two(positions)
    for groups in wanted:
        block_c = power_of_two(groups * width)
        if block_c * block_hw <= (capacity if groups == 1 else packed_capacity):
            return Plan("T0", groups, block_c, block_hw, _warps(block_c * block_hw))
    if clusters:
        for groups in wanted:
            block_c = power_of_two(groups * width)
            of_cta = capacity if groups == 1 else packed_capacity
            ctas = block_c * block_hw // of_cta
            if ctas <= _MOST_CTAS and block_hw >= ctas:
                return Plan("T1", groups, block_c, block_hw, _warps(of_cta), num_ctas=ctas)
    groups = wanted[0]
    block_c = power_of_two(groups * width)
    block_hw = min(block_hw, max(1, capacity // 2 // block_c))
    tiles = -(-positions // block_hw)
    splits = min(_MOST_SPLITS, -(-_PROGRAMS_AN_IMAGE * groups // num_groups))
    return Plan("T2", groups, block_c, block_hw, _warps(block_c * block_hw), tiles=tiles, tiles_per_split=-(-tiles // splits))


def _packing(num_groups: int, width: int, positions: int, itemsize: int, channels_last: bool) -> list[int]:
    """Groups of a tile, the preferred number first. All divide G, so every tile is full."""
    divisors = [n for n in range(1, num_groups + 1) if num_groups % n == 0]
    divisors = [n for n in divisors if n == 1 or n * width <= (_FEW_GROUPS_CHANNELS if n <= _FEW_GROUPS else _PACKED_CHANNELS)]
    if channels_last:
        # A row of the tile is groups * width elements: whole accesses first, then whole sectors, then up to a line.
        def rank(n: int) -> tuple[bool, bool, int]:
            row = n * width * itemsize
            return row % ACCESS != 0, row < SECTOR, abs(row - LINE)

        best = sorted(divisors, key=rank)
        # Fewer groups a tile are taken to keep to one CTA, as long as accesses stay wide.
        return [n for n in best if rank(n)[:2] == rank(best[0])[:2]]
    block_hw = power_of_two(positions)
    fitting = [n for n in divisors if power_of_two(n * width) * block_hw <= _SMALL_TILE]
    # Of tiles that are equally full the largest: padding of channels is work for nothing.
    return [max(fitting, key=lambda n: (n * width / power_of_two(n * width), n)), 1] if fitting else [1]


def _warps(elements: int) -> int:
    return max(1, min(_MOST_WARPS, elements // (WARP * _PER_THREAD)))
