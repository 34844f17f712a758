"""Is a PNG whole? Pillow fills the rows that a short pixel stream lacks with zeros and says nothing."""

from __future__ import annotations

import struct
import zlib

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # a pixel's samples, by colour type
# x0, y0, dx, dy of Adam7's passes (PNG specification, section 8.2), and of the plain order as one pass.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_PLAIN = ((0, 0, 1, 1),)


def check_png(data: bytes) -> None:
    """Raise ValueError where a PNG's chunks are cut short or altered, or its pixel stream lacks rows.

    Data of any other format passes.
    """
    if not data.startswith(_SIGNATURE):
        return
    position, tag, header, streams = len(_SIGNATURE), b"", b"", []
    while tag != b"IEND":
        body_at = position + 8
        if body_at > len(data):
            raise ValueError("the file is truncated")
        length, tag = struct.unpack_from(">I4s", data, position)
        position = body_at + length + 4
        if position > len(data):
            raise ValueError("the file is truncated")
        body = data[body_at : body_at + length]
        if zlib.crc32(body, zlib.crc32(tag)) != int.from_bytes(data[position - 4 : position], "big"):
            raise ValueError(f"the checksum of chunk {tag.decode('latin-1')} is wrong")
        if tag == b"IHDR":
            header = body
        elif tag == b"IDAT":
            streams.append(body)
    expected = _stream_length(header)
    try:
        found = len(zlib.decompressobj().decompress(b"".join(streams), max(expected, 1)))
    except zlib.error as error:
        raise ValueError(f"the pixel data is damaged: {error}") from None
    if found < expected:
        raise ValueError(f"the pixel data is truncated: {found} of {expected} bytes")


def _stream_length(header: bytes) -> int:
    """Bytes of the uncompressed pixel stream: each row is a filter byte and its packed samples."""
    if len(header) != 13:
        raise ValueError("the header chunk is missing")
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    if colour not in _SAMPLES:
        raise ValueError(f"the colour type {colour} does not exist")
    total = 0
    for x, y, dx, dy in _ADAM7 if interlaced else _PLAIN:
        columns, rows = -(-(width - x) // dx), -(-(height - y) // dy)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * depth * _SAMPLES[colour] // 8))
    return total
