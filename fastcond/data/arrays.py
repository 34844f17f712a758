"""NumPy arrays: IMAGES.npy with LABELS.npy (the sprite course's format), and .npz with both."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from fastcond.data.labelled_images import LabelledImages, label_images

_KEYS = (("images", "labels"), ("arr_0", "arr_1"))


def read_npy(path: Path, labels: Path | None, label_rows: bool = False) -> LabelledImages:
    """Images from one .npy, mapped and not read into memory, and labels from another.

    Raises: ValueError without labels, for an array that is pickled or damaged, and what `as_images` raises.
    """
    if labels is None:
        raise ValueError(f"{path}: an .npy of images needs its labels; give them with --labels LABELS.npy")
    if labels.suffix.lower() != ".npy":
        raise ValueError(f"{labels}: labels of an .npy are read from an .npy; save them with np.save")
    images = as_images(_load(path, mapped=True), str(path))
    return label_images(str(path), images, _load(labels), label_rows=label_rows)


def read_npz(path: Path, label_rows: bool = False) -> LabelledImages:
    """Images and labels under `images` and `labels`, or `arr_0` and `arr_1`; `class_names` (text) may be there.

    Raises: ValueError for missing keys, a pickled or damaged array, and what `as_images` raises.
    """
    try:
        # Told apart from a lone .npy or a pickle by its first bytes: np.load would decide by content, not by name.
        if not zipfile.is_zipfile(path):
            raise ValueError("no zip inside")
        with np.load(path, allow_pickle=False) as archive:
            keys = next((pair for pair in _KEYS if all(key in archive for key in pair)), None)
            if keys is None:
                raise _NoKeys(", ".join(archive.files) or "nothing")
            images, labels = (np.asarray(archive[key]) for key in keys)  # bytes, where no array is inside
            names = np.asarray(archive["class_names"]) if "class_names" in archive else None
    except _NoKeys as found:
        raise ValueError(f"{path}: holds {found}; it needs images and labels, or arr_0 and arr_1") from None
    except _UNREADABLE as error:
        raise _unreadable(path, error) from None
    if names is not None and (names.ndim != 1 or names.dtype.kind not in "US"):
        raise ValueError(f"{path}: class_names are {names.dtype} of {names.ndim} dimensions; store a list of texts")
    own_names = None if names is None else names.astype(str).tolist()
    return label_images(str(path), as_images(images, str(path)), labels, own_names, label_rows=label_rows)


def as_images(array: np.ndarray, origin: str) -> np.ndarray:
    """An array of images as uint8 [N, H, W, C], a view of what is given.

    [N, H, W] is grayscale. [N, C, H, W] with C 1 or 3 is recognised where the last axis is neither 1 nor 3; every
    other [N, H, W, C] is taken as it stands, with any C.

    Raises: ValueError for another dtype (a range is not guessed) or number of axes.
    """
    if array.dtype != np.uint8:
        some = array[:1000]
        seen = f" in [{float(some.min()):g}, {float(some.max()):g}]" if some.size and array.dtype.kind in "biuf" else ""
        raise ValueError(f"{origin}: images are {array.dtype}{seen}; convert them to uint8 in 0..255")
    if array.ndim == 3:
        return array[..., None]
    if array.ndim != 4 or 0 in array.shape[1:]:
        shape = ", ".join(str(n) for n in array.shape)
        raise ValueError(f"{origin}: images have shape [{shape}]; give [N, H, W], [N, H, W, C] or [N, C, H, W]")
    if array.shape[1] in (1, 3) and array.shape[3] not in (1, 3):
        return np.moveaxis(array, 1, 3)
    return array


class _NoKeys(Exception):
    """An .npz without the keys; the message is what it holds."""


_UNREADABLE = (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)


def _load(path: Path, mapped: bool = False) -> np.ndarray:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; --labels names the file that holds the labels")
    try:
        with path.open("rb") as file:
            if file.read(6) != b"\x93NUMPY":
                raise ValueError("no .npy header")
        array: np.ndarray = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
        return array
    except _UNREADABLE as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> ValueError:
    # NumPy's refusals of pickled data all speak of objects; none of its other complaints does.
    if "object" in str(error).lower():
        return ValueError(f"{path}: holds pickled Python objects, which are never loaded; save plain numeric arrays")
    return ValueError(f"{path}: is not a NumPy file or is damaged ({error}); save it again")
