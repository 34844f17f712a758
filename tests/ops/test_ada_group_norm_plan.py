"""How AdaGN is split over a GPU: every element in one tile, wide accesses where shapes allow, no batch size."""

from __future__ import annotations

import inspect

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fastcond.config import UNetConfig
from fastcond.ops.ada_group_norm.plan import ACCESS, SECTOR, make_plan
from fastcond.presets import PRESETS

CALLS = st.fixed_dictionaries(
    {
        "num_groups": st.sampled_from([1, 2, 3, 8, 32]),
        "positions": st.one_of(st.integers(1, 300), st.sampled_from([1024, 4096, 65536, 1 << 20])),
        "itemsize": st.sampled_from([2, 4]),
        "channels_last": st.booleans(),
        "clusters": st.booleans(),
        "backward": st.booleans(),
    }
)


def test_images_of_two_billion_elements_are_the_reference_s() -> None:
    assert make_plan(1 << 11, 32, 1 << 20, 2, False, True, False) is None


@given(call=CALLS, width=st.integers(1, 200))
def test_tiles_cover_whole_groups_and_all_positions(call: dict[str, int], width: int) -> None:
    groups = call["num_groups"]
    assume(groups * width * call["positions"] < 2**31)
    plan = make_plan(channels=groups * width, **call)
    assert plan is not None
    assert groups % plan.groups == 0 and plan.groups * width <= plan.block_c
    assert plan.block_hw * plan.tiles >= call["positions"] > plan.block_hw * (plan.tiles - 1)
    assert plan.tiles_per_split * plan.splits >= plan.tiles > plan.tiles_per_split * (plan.splits - 1)
    for side in (plan.block_c, plan.block_hw, plan.num_warps, plan.num_ctas):
        assert side & (side - 1) == 0
    if plan.tier == "T2":
        assert plan.splits <= 64
    else:
        assert plan.tiles == 1 and (plan.num_ctas > 1) == (plan.tier == "T1")
    assert plan.tier != "T1" or call["clusters"]


def test_the_split_does_not_know_the_batch() -> None:
    assert not {"batch", "batch_size", "multiprocessors"} & set(inspect.signature(make_plan).parameters)


def norm_shapes(preset: str, image_size: int) -> set[tuple[int, int, int]]:
    """(C, G, HW) of every norm of a preset's network, concatenated skip connections included."""
    config = UNetConfig(image_size=(image_size, image_size), num_classes=10, **PRESETS[preset].network)
    shapes = set()
    channels = config.block_out_channels
    for level, width in enumerate(channels):
        side = image_size >> level
        below = channels[min(level + 1, len(channels) - 1)]
        above = channels[max(level - 1, 0)]
        for count in {width, above, width + width, width + below, width + above}:
            shapes.add((count, config.norm_num_groups, side * side))
            if level + 1 < len(channels):
                shapes.add((count, config.norm_num_groups, side * side // 4))
    return shapes


PRESET_SIZES = [("tiny", 16), ("tiny", 32), ("sprites", 16), ("cifar10", 32), ("imagenet64", 64)]


@pytest.mark.parametrize(("preset", "image_size"), PRESET_SIZES)
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_rows_of_the_presets_are_whole_accesses(
    preset: str, image_size: int, itemsize: int, backward: bool, channels_last: bool
) -> None:
    for channels, groups, positions in norm_shapes(preset, image_size):
        plan = make_plan(channels, groups, positions, itemsize, channels_last, True, backward)
        assert plan is not None
        row = plan.groups * (channels // groups) if channels_last else positions
        assert row * itemsize % ACCESS == 0, (channels, groups, positions)
        if channels_last and channels * itemsize >= SECTOR:
            assert row * itemsize >= SECTOR
