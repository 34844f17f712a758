"""Pictures of what a model drew: labelled grids, PNG files, GIFs."""

from __future__ import annotations

import os
import struct
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_GAP = 2
_PAPER, _INK = (255, 255, 255), (40, 40, 48)
_SMALLEST_CELL = 64  # pixels; smaller images are enlarged by a whole factor so that a person can see them
_FONT_SIZE = 15
_LONGEST_NAME = 28


def to_picture(image: np.ndarray) -> Image.Image:
    """uint8 [H, W, C] as a Pillow image. C is 1 (gray), 3 (RGB) or 4 (RGBA); of any other number the first channel is shown."""
    channels = image.shape[2]
    return Image.fromarray(image if channels in (3, 4) else image[:, :, 0])


def image_grid(images: np.ndarray, columns: int, row_names: Sequence[str] | None = None) -> Image.Image:
    """Lay images out row by row, small ones enlarged without smoothing.

    Args: images: uint8 [N, H, W, C]. columns: images a row. row_names: one name a row, written at its left.
    Returns: an RGB picture.
    """
    count, height, width = images.shape[:3]
    rows = max(1, (count + columns - 1) // columns)
    factor = max(1, -(-_SMALLEST_CELL // max(height, width)))
    cell_height, cell_width = height * factor + _GAP, width * factor + _GAP
    font = ImageFont.load_default(_FONT_SIZE)
    names = list(row_names or [])
    margin = max((int(font.getlength(name)) for name in names), default=-2 * _GAP) + 4 * _GAP if names else _GAP
    picture = Image.new("RGB", (margin + columns * cell_width, _GAP + rows * cell_height), _PAPER)
    draw = ImageDraw.Draw(picture)
    for row, name in enumerate(names[:rows]):
        middle = _GAP + row * cell_height + (cell_height - _GAP) // 2
        draw.text((margin - 2 * _GAP, middle), name, fill=_INK, font=font, anchor="rm")
    for i, image in enumerate(images):
        tile = to_picture(image).convert("RGB").resize((width * factor, height * factor), Image.Resampling.NEAREST)
        picture.paste(tile, (margin + i % columns * cell_width, _GAP + i // columns * cell_height))
    return picture


def row_name(label: int, name: str) -> str:
    """A class name as the grid's font can draw it: accents are dropped, and the label stands before a name that lost more."""
    drawable = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().strip()
    lost = len(drawable) < len(unicodedata.normalize("NFC", name).strip())
    text = f"{label} {drawable}".strip() if lost else drawable
    return text if len(text) <= _LONGEST_NAME else f"{text[: _LONGEST_NAME - 2]}.."


def png_bytes(image: np.ndarray) -> bytes:
    """uint8 [H, W, C] as a PNG (specification: W3C, sections 5, 9 and 12.8); as to channels see `to_picture`.

    Written here because Pillow loads its other formats before it saves one, which a single image would wait for.
    """
    if image.shape[2] not in (1, 3, 4):
        image = image[:, :, :1]
    height, width, channels = image.shape
    rows = np.ascontiguousarray(image).reshape(height, width * channels)
    left, above = rows.copy(), rows.copy()  # filters 1 and 2: differences to the neighbours, modulo 256
    left[:, channels:] -= rows[:, :-channels]
    above[1:] -= rows[:-1]
    filtered = np.stack([rows, left, above])
    best = np.abs(filtered.view(np.int8).astype(np.int16)).sum(axis=2).argmin(axis=0)
    lines = np.concatenate([best[:, None].astype(np.uint8), filtered[best, np.arange(height)]], axis=1)

    def chunk(tag: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))

    colour_type = {1: 0, 3: 2, 4: 6}[channels]
    header = chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(lines.tobytes())) + chunk(b"IEND", b"")


def write_png(picture: Image.Image, path: Path) -> None:
    """Write a picture (gray, RGB or RGBA) as a PNG, making its folder where it is missing."""
    pixels = np.asarray(picture)
    write_file(png_bytes(pixels if pixels.ndim == 3 else pixels[:, :, None]), path)


def write_file(content: bytes, path: Path) -> None:
    """Write a file that is whole or absent, making its folder where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        partial.write_bytes(content)


def write_gif(frames: Sequence[Image.Image], path: Path, frame_ms: int = 60, last_ms: int = 2000) -> None:
    """Write an endless GIF that rests on its last frame."""
    durations = [frame_ms] * (len(frames) - 1) + [last_ms]
    # One palette for all frames, from all of their colours: a palette a frame would flicker.
    width, height = (max(1, extent // 4) for extent in frames[0].size)
    colours = Image.new("RGB", (width, height * len(frames)))
    for i, frame in enumerate(frames):
        colours.paste(frame.resize((width, height), Image.Resampling.NEAREST), (0, i * height))
    palette = colours.quantize(256)
    paletted = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    with whole_file(path) as partial:
        paletted[0].save(partial, format="GIF", save_all=True, append_images=paletted[1:], duration=durations, loop=0)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Where to write a file that takes its name when it is complete. Raises OSError naming `path` where it cannot be."""
    partial = path.with_name(f".partial-{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise OSError(error.errno, f"could not be written: {error.strerror or error}", str(path)) from error
    finally:
        partial.unlink(missing_ok=True)
