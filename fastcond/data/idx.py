"""MNIST's IDX files, plain or gzipped: images [N, H, W] in one, labels [N] in another.

Two zero bytes, a type (8 is unsigned byte), the number of axes, each axis as a big-endian uint32, then the values.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from pathlib import Path

import numpy as np

from fastcond.data.labelled_images import LabelledImages, label_images

_NAME = re.compile(r"idx\d-ubyte(\.gz)?$")
_TRAINING_IMAGES = re.compile(r"train-images[-.]idx3-ubyte(\.gz)?$")


def is_idx(path: Path) -> bool:
    """Whether a file is read as IDX: by MNIST's naming, or as the only format that is gzipped."""
    return _NAME.search(path.name) is not None or (path.suffix == ".gz" and not path.name.endswith(".tar.gz"))


def find_training_images(folder: Path) -> Path | None:
    """The training images in a folder of IDX files, the plain file before its .gz; None where there are none.

    Raises: ValueError where several data sets lie in the folder (EMNIST's do).
    """
    found = sorted(path for path in folder.iterdir() if _TRAINING_IMAGES.search(path.name) and path.name[0] != ".")
    if len({path.name.removesuffix(".gz") for path in found}) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"{folder}: holds several training sets ({names}); give the path of one of these files")
    return found[0] if found else None


def read_idx_pair(path: Path, labels: Path | None) -> LabelledImages:
    """Images of `path`, uint8 [N, H, W, 1], and labels of the file given or found beside it; classes are numbered.

    Raises: FileNotFoundError for missing labels; ValueError for files that are no IDX, of the wrong kind, or truncated.
    """
    beside = labels if labels is not None else _labels_beside(path)
    if not beside.exists():
        raise FileNotFoundError(f"{beside}: no such file; --labels names the IDX file with the labels of {path}")
    return label_images(str(path), _read_idx(path, axes=3)[..., None], _read_idx(beside, axes=1))


def _labels_beside(path: Path) -> Path:
    """train-images-idx3-ubyte.gz -> train-labels-idx1-ubyte.gz, or its plain (or gzipped) twin if that is there."""
    name = path.name.replace("images", "labels").replace("idx3", "idx1")
    if name == path.name:
        raise ValueError(f"{path}: its name does not tell where its labels are; give them with --labels FILE")
    plain = name.removesuffix(".gz")
    twins = [path.with_name(twin) for twin in (name, plain, f"{plain}.gz")]
    return next((twin for twin in twins if twin.exists()), twins[0])


def _read_idx(path: Path, axes: int) -> np.ndarray:
    """The values, uint8, with `axes` axes: 3 for images, 1 for labels."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: is not gzip or is truncated ({error}); download it again") from None
    magic, expected_magic = data[:4], bytes((0, 0, 8, axes))
    if magic != expected_magic:
        what = "images" if axes == 3 else "labels"
        raise ValueError(
            f"{path}: begins with {magic.hex() or 'nothing'}; an IDX file of {what} begins with {expected_magic.hex()}"
        )
    start = 4 + 4 * axes
    if len(data) < start:
        raise ValueError(f"{path}: is truncated: a header of {start} bytes expected, {len(data)} found")
    shape = struct.unpack_from(f">{axes}I", data, 4)
    expected = start + math.prod(shape)
    if len(data) != expected:
        raise ValueError(f"{path}: {expected} bytes expected, {len(data)} found; download it again")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
