"""LabelledImages, the one result of every format, and the checks that all formats share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastcond.data.labels import as_labels


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images, their labels, and what the labels are called.

    Attributes:
        images: uint8 [N, H, W, C], C 1 or 3 (any C from arrays); may be a read-only memory map or a strided view.
        labels: int64 [N], in [0, num_classes); every class has at least one image.
        class_names: one name a class, in label order, no name twice.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        """N, the number of images."""
        return len(self.images)

    @property
    def num_classes(self) -> int:
        """K: labels are 0 .. K-1."""
        return len(self.class_names)

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.images.shape[1], self.images.shape[2]

    @property
    def channels(self) -> int:
        """C: 1 is gray, 3 is RGB."""
        return int(self.images.shape[3])


def numbered(num_classes: int) -> tuple[str, ...]:
    """The names of classes that have none: "0", "1", ..."""
    return tuple(str(label) for label in range(num_classes))


def label_images(origin: str, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str] | None = None) -> LabelledImages:
    """Join images and labels after checking that they fit; every reader ends here.

    Args:
        origin: what error messages call the source.
        images: uint8 [N, H, W, C].
        labels: integers [N] or one-hot rows [N, K], any dtype.
        class_names: the format's own names; None numbers the classes.
    Raises: ValueError for no images, labels of another count or out of range, a name given twice, a class that has
        no image.
    """
    if not len(images):
        raise ValueError(f"{origin}: holds no images")
    labels = np.atleast_1d(labels)
    if len(images) != len(labels):
        raise ValueError(f"{origin}: {len(images)} images but {len(labels)} labels; give one label for each image")
    integers, num_classes = as_labels(labels, origin)
    names = numbered(num_classes) if class_names is None else tuple(class_names)
    if num_classes > len(names):
        raise ValueError(
            f"{origin}: labels reach {num_classes - 1} but there are {len(names)} classes ({shortened(names)}); "
            f"labels run 0 to {len(names) - 1}"
        )
    check_distinct(names, origin)
    empty = np.flatnonzero(np.bincount(integers, minlength=len(names)) == 0)
    if len(empty):
        label = int(empty[0])
        name = f" ({names[label]})" if names[label] != str(label) else ""
        raise ValueError(
            f"{origin}: label {label}{name} has no image (labels run 0 to {len(names) - 1}, "
            f"{len(empty)} of them unused); add images of it or renumber the labels without gaps"
        )
    return LabelledImages(images, integers, names)


def check_distinct(names: Sequence[str], origin: str) -> None:
    """Raise ValueError for a class name that occurs twice: `--label NAME` could not tell which is meant."""
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{origin}: the class name {name!r} is given twice; give every class its own name")


def shortened(names: Sequence[str]) -> str:
    """The first three names, for a message."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
