"""A folder (or a zip) that holds one folder a class."""

from __future__ import annotations

import numpy as np

from fastcond.data.decoding import read_images
from fastcond.data.image_files import ImageFiles, is_image
from fastcond.data.labelled_images import LabelledImages, label_images


def read_class_folders(files: ImageFiles, size: tuple[int, int] | None) -> LabelledImages:
    """Read TREE/CLASS/**/*.png (.jpg, .jpeg, .webp), classes and files sorted by name.

    Files with other extensions and hidden ones are ignored.

    Raises: ValueError for no class folders, images beside the class folders, a class without images, and what
        `read_images` raises.
    """
    names = [name for name in files.names if is_image(name)]
    loose = [name for name in names if "/" not in name]
    if not files.folders:
        found = f"{len(loose)} images but no class folders" if loose else "neither images nor class folders"
        raise ValueError(f"{files.origin}: holds {found}; put them in one folder a class: CLASS/IMAGE.png")
    if loose:
        raise ValueError(
            f"{files.origin}: {len(loose)} images lie beside the class folders (the first is {loose[0]}); "
            f"put them in one folder a class, or elsewhere"
        )
    label_of = {folder: label for label, folder in enumerate(files.folders)}
    labels = np.array([label_of[name.split("/")[0]] for name in names], np.int64)
    for folder, count in zip(files.folders, np.bincount(labels, minlength=len(label_of)), strict=True):
        if not count:
            raise ValueError(f"{files.origin}: class folder {folder} holds no PNG, JPEG or WebP image; fill it or remove it")
    # Sorted by path alone, "cat-2/1.png" would come between the files of "cat": order by class first.
    order = np.argsort(labels, kind="stable")
    images = read_images(files, [names[index] for index in order], size)
    return label_images(files.origin, images, labels[order], files.folders)
