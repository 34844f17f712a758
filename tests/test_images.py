"""Pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcond.images import image_grid, row_name, to_picture, write_gif, write_png


def test_a_grid_holds_every_pixel_enlarged() -> None:
    images = np.random.default_rng(0).integers(0, 255, (6, 16, 8, 3), dtype=np.uint8)
    grid = np.asarray(image_grid(images, columns=3))
    # 16x8 becomes 64x32; 2 pixels of paper around.
    assert grid.shape == (2 + 2 * 66, 2 + 3 * 34, 3)
    for i, image in enumerate(images):
        top, left = 2 + i // 3 * 66, 2 + i % 3 * 34
        assert np.array_equal(grid[top : top + 64 : 4, left : left + 32 : 4], image)


def test_row_names_stand_left_of_their_rows() -> None:
    images = np.zeros((4, 8, 8, 1), np.uint8)
    plain, named = (np.asarray(image_grid(images, 2, names)) for names in (None, ["a long name", "b"]))
    assert named.shape[0] == plain.shape[0] and named.shape[1] > plain.shape[1] + 40
    margin = named[:, : named.shape[1] - plain.shape[1]]
    assert (margin[:66] < 128).any() and (margin[66:] < 128).any()


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "L"), (3, "RGB"), (4, "RGBA")])
def test_channels_become_a_mode(channels: int, mode: str) -> None:
    assert to_picture(np.zeros((4, 5, channels), np.uint8)).mode == mode


def test_png_is_lossless_and_leaves_no_partial_file(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    write_png(to_picture(image), tmp_path / "new" / "a.png")
    with Image.open(tmp_path / "new" / "a.png") as read:
        assert np.array_equal(np.asarray(read), image)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


def test_gif_has_every_frame_and_rests_on_the_last(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), (60 * i, 0, 255 - 60 * i)) for i in range(4)]
    write_gif(frames, tmp_path / "a.gif", frame_ms=50, last_ms=900)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 4
        gif.seek(3)
        assert gif.info["duration"] == 900
        assert np.abs(np.asarray(gif.convert("RGB")).astype(int)[0, 0] - [180, 0, 75]).max() < 30


@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        ("food", "food"),
        ("büro", "buro"),
        ("猫 cat", "3 cat"),
        ("猫", "3"),
        ("x" * 40, "x" * 26 + ".."),
        ("naïve — ok", "3 naive  ok"),
    ],
)
def test_row_names_are_drawable(name: str, drawn: str) -> None:
    assert row_name(3, name) == drawn
