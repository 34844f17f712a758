"""EDM's data sets: a zip (or a folder) with a dataset.json beside the images.

The index reads {"labels": [["00000/img00000000.png", 3], ...]}; a label is an integer or a one-hot list.
"""

from __future__ import annotations

import json

import numpy as np

from fastcond.data.decoding import read_images
from fastcond.data.image_files import ImageFiles, is_image
from fastcond.data.labelled_images import LabelledImages, label_images

INDEX = "dataset.json"


def read_edm(files: ImageFiles, size: tuple[int, int] | None) -> LabelledImages:
    """Read a tree that has a dataset.json; images come sorted by name, classes are numbered.

    Raises: ValueError for a dataset.json that is not JSON, has no labels, names a file twice or one that is missing,
        or leaves out an image; and what `read_images` and `label_images` raise.
    """
    origin = f"{files.origin}: {INDEX}"
    labels = _read_index(files.read(INDEX), origin)
    present = set(files.names)
    missing = [name for name in labels if name not in present]
    if missing:
        raise ValueError(f"{origin} names {missing[0]}, which is missing ({len(missing)} in all); add it or its line")
    unlisted = [name for name in files.names if is_image(name) and name not in labels]
    if unlisted:
        raise ValueError(f"{origin} has no labels for {len(unlisted)} images (the first is {unlisted[0]}); label or remove them")
    names = sorted(labels)
    try:
        values = np.array([labels[name] for name in names])
    except ValueError:  # lists of unequal length
        raise ValueError(f"{origin} mixes integers and lists; labels are all integers or all one-hot lists") from None
    return label_images(files.origin, read_images(files, names, size), values)


def _read_index(text: bytes, origin: str) -> dict[str, object]:
    """File name -> label, as written."""
    try:
        index = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{origin} is not JSON ({error})") from None
    pairs = index.get("labels") if isinstance(index, dict) else None
    if not pairs:
        raise ValueError(f'{origin} has no labels; it needs {{"labels": [["IMAGE.png", 0], ...]}}')
    if isinstance(pairs, dict):  # EDM reads this form too
        pairs = [list(pair) for pair in pairs.items()]
    if not (isinstance(pairs, list) and all(map(_is_pair, pairs))):
        raise ValueError(f'{origin}: "labels" is not a list of pairs like ["IMAGE.png", 0]')
    labels: dict[str, object] = {}
    for name, label in pairs:
        name = name.replace("\\", "/")  # written on Windows
        if name in labels:
            raise ValueError(f"{origin} names {name} twice; keep one line an image")
        if label is None:
            raise ValueError(f"{origin} has no labels for {name} (null); give every image one")
        labels[name] = label
    return labels


def _is_pair(entry: object) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)
