"""samples.npz written while its images are drawn: at constant memory, and to be gone on with after a kill at any moment.

An .npz is a zip of .npy files. Its first member, `images.npy`, is written where it will lie, uncompressed, and the array's shape
in its header says how many images are there; the other members and the zip's directory follow when the images end. Until then the
file has another name. What the shape counts has been flushed before, so it is there after a power failure too.
"""

from __future__ import annotations

import errno
import os
import struct
import time
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from zipfile import ZipFile, ZipInfo

import numpy as np

_IMAGES = "images.npy"
_HEADER_BYTES = 128  # of an .npy's header here: any shape fits, so that it can be written anew in place
_ZIP_BYTES = 30 + len(_IMAGES) + 20  # before it: the member's entry, its name, its sizes in 64 bits
_CHUNK = 1 << 20
_SECONDS_BETWEEN_FLUSHES = 1.0
_CANNOT_RESERVE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENODEV)


class NpzStream:
    """One .npz being written, `images` first. Opens what an earlier process left, or begins.

    Args: path: the .npz. total: images that it is to hold. image_shape: (H, W, C) of each, uint8. tail_bytes: what the other
        arrays take an image.
    Raises: ValueError for a file that is none of this kind, OSError where the disk has no room for the whole.
    """

    def __init__(self, path: Path, total: int, image_shape: tuple[int, ...], tail_bytes: int = 0) -> None:
        self.path, self.total, self.image_shape = path, total, image_shape
        self._image_bytes = int(np.prod(image_shape))
        self._partial = path.with_name(f".partial-{path.name}")
        self.done = images_in(path, image_shape)
        self.complete = path.exists() and self.done == total
        if self.complete:
            return
        if path.exists():
            os.replace(path, self._partial)
        exists = self._partial.exists() and self._partial.stat().st_size >= _ZIP_BYTES + _HEADER_BYTES
        # Unbuffered: after an error nothing is left in a buffer that would have to be written before anything else.
        self._file = self._partial.open("r+b" if exists else "w+b", buffering=0)
        try:
            self._reserve(_ZIP_BYTES + _HEADER_BYTES + total * (self._image_bytes + tail_bytes) + 4096)
            self._commit()
            self._sum = self._checksum(self.done, total)
        except OSError:
            self._file.close()
            if self.done == 0:
                self._partial.unlink()
            raise

    def append(self, images: np.ndarray) -> None:
        """Write the next images, uint8 [B, H, W, C]."""
        assert images.dtype == np.uint8 and images.shape[1:] == self.image_shape and self.done + len(images) <= self.total
        content = images.tobytes()
        self._write(self._position(self.done), content)
        self._sum = zlib.crc32(content, self._sum)
        self.done += len(images)
        if time.monotonic() - self._committed_at > _SECONDS_BETWEEN_FLUSHES:
            self._commit()

    def read(self, positions: Iterable[int]) -> np.ndarray:
        """Images by their position, uint8 [N, H, W, C]."""
        images = []
        with (self.path if self.complete else self._partial).open("rb") as file:
            for position in positions:
                file.seek(self._position(position))
                images.append(np.frombuffer(file.read(self._image_bytes), np.uint8).reshape(self.image_shape))
        return np.stack(images) if images else np.empty((0, *self.image_shape), np.uint8)

    def finish(self, others: Mapping[str, tuple[str, tuple[int, ...], Iterable[np.ndarray]]]) -> None:
        """Add the other arrays, name -> (dtype as in "<i8", shape, its parts in order), and give the file its name.

        With fewer images than `total` it is a whole .npz of those that are there, and a stream opened on it goes on.
        """
        if self.complete:
            return
        self._commit()
        info = ZipInfo(_IMAGES)
        info.external_attr = 0o600 << 16
        info.file_size = info.compress_size = _HEADER_BYTES + self.done * self._image_bytes
        info.CRC = self._sum if self.done == self.total else self._checksum(self.done, self.done)
        info.header_offset = 0
        entry = info.FileHeader(zip64=True)
        assert len(entry) == _ZIP_BYTES
        self._write(0, entry)
        self._file.truncate(self._position(self.done))
        self._file.close()
        with self._partial.open("r+b") as file:
            file.seek(0, os.SEEK_END)
            with ZipFile(file, "w") as archive:
                archive.filelist.append(info)
                archive.NameToInfo[info.filename] = info
                for name, (dtype, shape, parts) in others.items():
                    with archive.open(ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                        member.write(_npy_header(dtype, shape))
                        for part in parts:
                            member.write(np.ascontiguousarray(part, dtype).tobytes())
            file.flush()
            os.fsync(file.fileno())
        os.replace(self._partial, self.path)
        flush_folder(self.path.parent)
        self.complete = True

    def close(self) -> None:
        """Leave the file as it is, to be gone on with."""
        if not self.complete:
            self._file.close()

    def discard(self) -> None:
        """Remove the unfinished file."""
        self.close()
        self._partial.unlink(missing_ok=True)

    def _write(self, position: int, content: bytes) -> None:
        self._file.seek(position)
        left = memoryview(content)
        while left:
            left = left[self._file.write(left) :]

    def _position(self, image: int) -> int:
        return _ZIP_BYTES + _HEADER_BYTES + image * self._image_bytes

    def _reserve(self, size: int) -> None:
        """Take the room on the disk now, so that it does not run out on the way. Not every file system can."""
        if not hasattr(os, "posix_fallocate"):
            return
        try:
            os.posix_fallocate(self._file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in _CANNOT_RESERVE:
                reason = f"{error.strerror}: {self.total:,} images need {size / 1e6:,.1f} MB; use a smaller --n or another --out"
                raise OSError(error.errno, reason, str(self.path)) from error

    def _commit(self) -> None:
        """Flush the images, and only then count them."""
        os.fsync(self._file.fileno())
        self._write(_ZIP_BYTES, _npy_header("|u1", (self.done, *self.image_shape)))
        self._committed_at = time.monotonic()

    def _checksum(self, done: int, count: int) -> int:
        """CRC-32 of the first `done` images after the header of an array of `count`."""
        crc = zlib.crc32(_npy_header("|u1", (count, *self.image_shape)))
        self._file.seek(self._position(0))
        left = done * self._image_bytes
        while left:
            chunk = self._file.read(min(left, _CHUNK))
            if not chunk:
                raise OSError(errno.EIO, "images are missing from the file", str(self._partial))
            crc = zlib.crc32(chunk, crc)
            left -= len(chunk)
        return crc


def images_in(path: Path, image_shape: tuple[int, ...]) -> int:
    """How many images of this shape the .npz at `path`, finished or not, holds; 0 where there is none.

    Raises: ValueError for a file that is none of this kind.
    """
    partial = path.with_name(f".partial-{path.name}")
    found = path if path.exists() else partial
    if not found.exists():
        return 0
    with found.open("rb") as file:
        file.seek(_ZIP_BYTES)
        header = file.read(_HEADER_BYTES)
    if found == partial and not header.strip(b"\0"):
        return 0  # killed before anything was counted
    start, end = header.find(b"'shape': ("), header.find(b")")
    words = header[start + 10 : end].decode("latin-1").replace(" ", "").split(",")
    is_own = header.startswith(b"\x93NUMPY\x01\x00") and start > 0 and all(word.isdecimal() for word in words)
    if not is_own or tuple(map(int, words[1:])) != image_shape:
        raise ValueError(f"{found} does not hold images of {'x'.join(map(str, image_shape))} from here; choose another --out")
    return int(words[0])


def _npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """The header of an .npy, format 1.0, always of the same length (numpy.lib.format)."""
    inside = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({inside}), }}"
    assert len(text) < _HEADER_BYTES - 10
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", _HEADER_BYTES - 10) + text.ljust(_HEADER_BYTES - 11).encode() + b"\n"


def flush_folder(path: Path) -> None:
    """Make a rename in the folder durable. Windows has no such call and needs none."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
