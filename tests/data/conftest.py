"""What the tests of the data package share: images as files, IDX files, the real data beside the repository."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REAL_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def save() -> Callable[..., Path]:
    """save(path, pixels): write an array [h, w] or [h, w, C] as the image file that the extension says."""

    def write(path: Path, pixels: np.ndarray, **options: object) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, **options)
        return path

    return write


@pytest.fixture
def cats_and_dogs(tmp_path: Path, save: Callable[..., Path], rng: np.random.Generator) -> Path:
    """A folder of two classes: two cats, three dogs, RGB of 6x4 pixels."""
    root = tmp_path / "pets"
    for name in ("cat/b.png", "cat/a.png", "dog/2.png", "dog/1.png", "dog/young/3.png"):
        save(root / name, rng.integers(0, 256, (6, 4, 3), dtype=np.uint8))
    return root


@pytest.fixture
def write_idx() -> Callable[[Path, np.ndarray], Path]:
    """write_idx(path, values): MNIST's format, gzipped where the name ends in .gz."""

    def write(path: Path, values: np.ndarray) -> Path:
        header = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
        data = header + values.astype(np.uint8).tobytes()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
        return path

    return write


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """real_data(name): a folder of ../shared/data; the test is skipped, by name, where it is absent."""

    def find(name: str) -> Path:
        if not (REAL_DATA / name).is_dir():
            pytest.skip(f"shared/data/{name} is not here")
        return REAL_DATA / name

    return find
