"""An .npz written image after image."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fastcond import npz_stream
from fastcond.npz_stream import NpzStream, images_in

SHAPE = (4, 3, 3)


def images(first: int, count: int) -> np.ndarray:
    """Image i is a function of i."""
    values = np.arange(first, first + count)[:, None, None, None] * 7 + np.arange(36).reshape(SHAPE)
    return (values % 251).astype(np.uint8)


def others(count: int) -> dict[str, tuple[str, tuple[int, ...], list[np.ndarray]]]:
    numbers = np.arange(count)
    return {"labels": ("<i8", (count,), [numbers[:3], numbers[3:]]), "seeds": ("<i8", (count, 2), [np.stack([numbers] * 2, 1)])}


def write(path: Path, total: int, *parts: int) -> None:
    stream = NpzStream(path, total, SHAPE)
    for part in parts:
        stream.append(images(stream.done, part))
    stream.finish(others(stream.done))


def test_numpy_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write(path, 10, 4, 4, 2)
    assert zipfile.ZipFile(path).testzip() is None and list(tmp_path.iterdir()) == [path]
    with np.load(path) as arrays:
        assert arrays.files == ["images", "labels", "seeds"]
        assert np.array_equal(arrays["images"], images(0, 10))
        assert arrays["labels"].tolist() == list(range(10)) and arrays["seeds"].shape == (10, 2)


def test_an_unfinished_one_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.npz", tmp_path / "a.npz"
    write(whole, 10, 10)
    # Short, finished: a whole file of what is there.
    write(path, 10, 3)
    with np.load(path) as arrays:
        assert np.array_equal(arrays["images"], images(0, 3)) and len(arrays["labels"]) == 3
    assert images_in(path, SHAPE) == 3
    # Left in the middle, as by a kill: of what was not counted nothing is taken.
    stream = NpzStream(path, 10, SHAPE)
    stream.append(images(3, 2))
    stream._commit()
    stream.append(images(9, 1))
    stream.close()
    assert images_in(path, SHAPE) == 5 and not path.exists()
    write(path, 10, 5)
    assert path.read_bytes() == whole.read_bytes()
    assert NpzStream(path, 10, SHAPE).complete


def test_images_are_read_back_by_position(tmp_path: Path) -> None:
    stream = NpzStream(tmp_path / "a.npz", 9, SHAPE)
    stream.append(images(0, 9))
    for _ in range(2):
        assert np.array_equal(stream.read([8, 0, 3]), images(0, 9)[[8, 0, 3]])
        stream.finish(others(9))


def test_another_file_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", labels=np.arange(100))
    with pytest.raises(ValueError, match="choose another --out"):
        images_in(tmp_path / "a.npz", SHAPE)
    write(tmp_path / "b.npz", 3, 3)
    with pytest.raises(ValueError, match="images of 5x5x1"):
        images_in(tmp_path / "b.npz", (5, 5, 1))


def test_a_file_that_cannot_reserve_its_room_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "reserved.npz", 8, 5, 3)
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    write(tmp_path / "grown.npz", 8, 5, 3)
    assert (tmp_path / "reserved.npz").read_bytes() == (tmp_path / "grown.npz").read_bytes()


def test_more_than_4_gib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sparse file: all of it but the first and last image is a hole."""
    shape, total = (1024, 1024, 3), 1400
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    monkeypatch.setattr(NpzStream, "_checksum", lambda self, done, count: 0)
    stream = NpzStream(tmp_path / "a.npz", total, shape)
    stream.done = total - 1
    stream.append(np.full((1, *shape), 7, np.uint8))
    stream.finish({"labels": ("<i8", (total,), [np.arange(total)])})
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert archive.getinfo("images.npy").file_size == 128 + total * 1024 * 1024 * 3
        with archive.open("labels.npy") as member:
            assert np.lib.format.read_array(member).tolist() == list(range(total))
    assert stream.read([total - 1]).min() == 7 and images_in(tmp_path / "a.npz", shape) == total


def test_headers_are_numpys(tmp_path: Path) -> None:
    header = npz_stream._npy_header("<i8", (5,)) + bytes(40)
    (tmp_path / "a.npy").write_bytes(header)
    assert np.load(tmp_path / "a.npy").tolist() == [0] * 5
