"""PNG, JPEG and WebP files to one uint8 array: alpha on white, 16 bits to 8, upright, gray or RGB."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fastcond.data.image_files import ImageFiles
from fastcond.data.png import check_png
from fastcond.data.resizing import fit_image

_FORMATS = ("PNG", "JPEG", "WEBP")
_GRAY_MODES = frozenset({"1", "L", "LA", "I", "I;16", "I;16L", "I;16B"})
_ORIENTATION = 0x0112  # EXIF tag; values 5 to 8 exchange height and width
_CHUNK = 64  # files a task of the thread pool: fewer cost more in handing over than in decoding
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


class _Header(NamedTuple):
    height: int
    width: int
    gray: bool


def read_images(files: ImageFiles, names: Sequence[str], size: tuple[int, int] | None) -> np.ndarray:
    """Decode `names` in their order into uint8 [N, H, W, C]: C is 1 where every file is grayscale, else 3.

    A palette counts as colour, and so does every WebP. The headers are read first, so that the result is allocated
    once.

    Args:
        size: (H, W) that every image is fitted to; None: all images must have one size.
    Raises: ValueError for a file that is damaged, truncated or not PNG, JPEG or WebP (named), or for two sizes.
    """
    chunks = [range(start, min(start + _CHUNK, len(names))) for start in range(0, len(names), _CHUNK)]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda chunk: [_read_header(files, names[index]) for index in chunk], chunks)
        headers = [header for part in found for header in part]
        height, width = size or _common_size(files, names, headers)
        channels = 1 if all(header.gray for header in headers) else 3
        images = np.empty((len(names), height, width, channels), np.uint8)

        def fill(chunk: Iterable[int]) -> None:
            for index in chunk:
                images[index] = fit_image(_decode(files, names[index], channels), (height, width))

        for _ in pool.map(fill, chunks):
            pass
    return images


def _common_size(files: ImageFiles, names: Sequence[str], headers: Sequence[_Header]) -> tuple[int, int]:
    first = headers[0]
    for name, header in zip(names, headers, strict=True):
        if header[:2] != first[:2]:
            raise ValueError(
                f"{files.origin}: images differ in size: {names[0]} is {first.height}x{first.width}, {name} is "
                f"{header.height}x{header.width} (height x width); use --size to bring them to one"
            )
    return first.height, first.width


def _read_header(files: ImageFiles, name: str) -> _Header:
    with _opened(files, name) as image:
        height, width = image.height, image.width
        # A square stays square however it is turned; asking only others spares most PNGs a decoding, because Pillow
        # looks for the orientation behind the pixels too.
        if height != width and image.getexif().get(_ORIENTATION) in (5, 6, 7, 8):
            height, width = width, height
        return _Header(height, width, image.mode in _GRAY_MODES)


def _decode(files: ImageFiles, name: str, channels: int) -> np.ndarray:
    """One file as uint8 [h, w, channels], whatever it stores."""
    with _opened(files, name, whole=True) as image:
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I"):
            image = _to_eight_bits(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(image.height, image.width, channels)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit gray to 8 bits, 65535 to 255 (Pillow's own conversion clips at 255); a transparent gray becomes white."""
    values = np.asarray(image).astype(np.int64)
    values = np.where(values == image.info.get("transparency", -1), 65535, values)
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


@contextmanager
def _opened(files: ImageFiles, name: str, whole: bool = False) -> Iterator[Image.Image]:
    """The image, header read; any damage found inside the `with` becomes a ValueError that names the file."""
    data = files.read(name)
    try:
        if whole:
            check_png(data)
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            yield image
    except UnidentifiedImageError:
        raise ValueError(f"{files.origin}: {name} is not a PNG, JPEG or WebP image; replace or remove it") from None
    except _DAMAGE as error:
        raise ValueError(f"{files.origin}: {name} is damaged ({error}); replace or remove it") from None
