"""LabelledImages, the one result of every format, and the checks that all formats share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastcond.data.labels import as_labels

_MOST_READ = 1000


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images, their labels, and what the labels are called.

    Attributes:
        images: uint8 [N, H, W, C], C 1 or 3 (any C from arrays); may be a read-only memory map or a strided view.
        labels: int64 [N], in [0, num_classes), or float32 [N, K] of rows that are not all one-hot; every class has at least one
            image.
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

    def shown_labels(self, most: int) -> tuple[np.ndarray, tuple[str, ...]]:
        """Labels to show a network by, `most` at most, and what they are called: the first classes, int64 [n].

        Of labels that are rows, float32 [n, K]: the first that differ, among a thousand images, called "NAME:WEIGHT ...".
        """
        if self.labels.ndim == 1:
            labels = np.arange(min(most, self.num_classes))
            return labels, self.class_names[: len(labels)]
        some = self.labels[:_MOST_READ]
        rows = some[np.sort(np.unique(some, axis=0, return_index=True)[1])[:most]]
        return rows, tuple(self._name(row) for row in rows)

    def _name(self, row: np.ndarray) -> str:
        return " ".join(f"{name}:{weight:.3g}" for name, weight in zip(self.class_names, row, strict=True) if weight) or "none"


def numbered(num_classes: int) -> tuple[str, ...]:
    """The names of classes that have none: "0", "1", ..."""
    return tuple(str(label) for label in range(num_classes))


def label_images(
    origin: str,
    images: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str] | None = None,
    *,
    label_rows: bool = False,
) -> LabelledImages:
    """Join images and labels after checking that they fit; every reader ends here.

    Args:
        origin: what error messages call the source.
        images: uint8 [N, H, W, C].
        labels: integers [N] or one-hot rows [N, K], any dtype.
        class_names: the format's own names; None numbers the classes.
        label_rows: whether rows may be other than one-hot.
    Raises: ValueError for no images, labels of another count or out of range, a name given twice, a class that has
        no image.
    """
    if not len(images):
        raise ValueError(f"{origin}: holds no images")
    labels = np.atleast_1d(labels)
    if len(images) != len(labels):
        raise ValueError(f"{origin}: {len(images)} images but {len(labels)} labels; give one label for each image")
    checked, num_classes = as_labels(labels, origin, label_rows=label_rows)
    names = numbered(num_classes) if class_names is None else tuple(class_names)
    if num_classes > len(names):
        raise ValueError(
            f"{origin}: labels reach {num_classes - 1} but there are {len(names)} classes ({shortened(names)}); "
            f"labels run 0 to {len(names) - 1}"
        )
    check_distinct(names, origin)
    images_of = np.bincount(checked, minlength=len(names)) if checked.ndim == 1 else np.count_nonzero(checked, axis=0)
    empty = np.flatnonzero(images_of == 0)
    if len(empty):
        label = int(empty[0])
        name = f" ({names[label]})" if names[label] != str(label) else ""
        raise ValueError(
            f"{origin}: label {label}{name} has no image (labels run 0 to {len(names) - 1}, "
            f"{len(empty)} of them unused); add images of it or renumber the labels without gaps"
        )
    return LabelledImages(images, checked, names)


def check_distinct(names: Sequence[str], origin: str) -> None:
    """Raise ValueError for a class name that occurs twice: `--label NAME` could not tell which is meant."""
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{origin}: the class name {name!r} is given twice; give every class its own name")


def shortened(names: Sequence[str]) -> str:
    """The first three names, for a message."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
