"""CIFAR-10's and CIFAR-100's binary version: records of label bytes and a planar 3x32x32 image.

The Python version is pickled and never read.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastcond.data.labelled_images import LabelledImages, label_images, numbered

_PIXELS = 3 * 32 * 32
_REMEDY = "get the binary version (cifar-10-binary.tar.gz), unpack it and give its folder"


class _Kind(NamedTuple):
    label_bytes: int  # the last of them is the label; CIFAR-100 has the coarse one before it
    num_classes: int
    training_files: tuple[str, ...]
    names_file: str

    @property
    def record(self) -> int:
        return self.label_bytes + _PIXELS


_CIFAR10 = _Kind(1, 10, tuple(f"data_batch_{n}.bin" for n in range(1, 6)), "batches.meta.txt")
_CIFAR100 = _Kind(2, 100, ("train.bin",), "fine_label_names.txt")


def is_cifar_folder(folder: Path) -> bool:
    """Whether any file of either version lies in the folder, the pickled one too, so that it can be refused by name."""
    return _kind_by_files(folder) is not None or _is_pickled(folder)


def read_cifar_folder(folder: Path) -> LabelledImages:
    """The training images, uint8 [N, 32, 32, 3]; CIFAR-100's fine labels.

    Raises: ValueError for the pickled version or a file that is not whole; FileNotFoundError for a missing batch.
    """
    kind = _kind_by_files(folder)
    if kind is None:
        raise ValueError(f"{folder}: is CIFAR's Python version, which is pickled and never loaded; {_REMEDY}")
    paths = [folder / name for name in kind.training_files]
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path}: is missing from CIFAR's binary version; unpack the download again")
    return _read(str(folder), paths, kind)


def read_cifar_file(path: Path) -> LabelledImages:
    """One .bin file of either version, told by its name, or by its length where the name says nothing.

    Raises: ValueError for a file that is neither, or not whole.
    """
    if "batch" in path.name:
        kind = _CIFAR10
    elif path.name in ("train.bin", "test.bin"):
        kind = _CIFAR100
    else:
        length = path.stat().st_size
        fitting = [kind for kind in (_CIFAR10, _CIFAR100) if length and length % kind.record == 0]
        if len(fitting) != 1:
            raise ValueError(
                f"{path}: {length} bytes are not CIFAR-10's records of {_CIFAR10.record} bytes or CIFAR-100's of "
                f"{_CIFAR100.record}; keep the names of the binary version (data_batch_1.bin, train.bin)"
            )
        kind = fitting[0]
    return _read(str(path), [path], kind)


def refuse_archive(path: Path) -> None:
    """Raise ValueError for a tar archive or a pickle, in CIFAR's terms: it is what people have in that form."""
    raise ValueError(f"{path}: tar archives and pickles are not read (nothing is unpickled); for CIFAR, {_REMEDY}")


def _kind_by_files(folder: Path) -> _Kind | None:
    for kind in (_CIFAR10, _CIFAR100):
        if any((folder / name).is_file() for name in (*kind.training_files, kind.names_file)):
            return kind
    return None


def _is_pickled(folder: Path) -> bool:
    return (folder / "data_batch_1").is_file() or all((folder / name).is_file() for name in ("train", "test", "meta"))


def _read(origin: str, paths: list[Path], kind: _Kind) -> LabelledImages:
    counts = []
    for path in paths:
        found = path.stat().st_size
        expected = max(1, -(-found // kind.record)) * kind.record
        if found != expected:
            raise ValueError(
                f"{path}: is truncated: {expected} bytes ({expected // kind.record} records of {kind.record}) "
                f"expected, {found} found; unpack the download again"
            )
        counts.append(found // kind.record)
    images = np.empty((sum(counts), 32, 32, 3), np.uint8)
    labels = np.empty(sum(counts), np.uint8)
    start = 0
    for path, count in zip(paths, counts, strict=True):
        records = np.fromfile(path, np.uint8).reshape(count, kind.record)
        labels[start : start + count] = records[:, kind.label_bytes - 1]
        images[start : start + count] = np.moveaxis(records[:, kind.label_bytes :].reshape(count, 3, 32, 32), 1, 3)
        start += count
    return label_images(origin, images, labels, _class_names(paths[0].with_name(kind.names_file), kind))


def _class_names(path: Path, kind: _Kind) -> tuple[str, ...]:
    """The names beside the batches, one a line; numbers where the file is not there."""
    if not path.is_file():
        return numbered(kind.num_classes)
    names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    if len(names) != kind.num_classes:
        raise ValueError(f"{path}: {kind.num_classes} class names expected, {len(names)} found")
    return names
