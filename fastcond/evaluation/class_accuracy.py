"""Do samples show the class that was asked for, and are they as varied as the real images?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastcond.data import LabelledImages


@dataclass(frozen=True)
class ClassReport:
    """What an independent classifier and pixel statistics say of samples.

    Attributes:
        accuracy: share of samples that the classifier names as the class that was asked for.
        spread: within-class spread of the samples over that of the real images: the pixels' standard deviations within a
            class, averaged over pixels; the ratio averaged over classes; 1 is as varied as the real ones.
        class_accuracy, class_spread: the same by label, float [K].
        repeated: number of samples that equal another sample byte for byte.
        nearest: float [N], root-mean-square distance of each sample to its nearest real image, in gray levels 0 to 255.
        nearest_index: int64 [N], which real image that is.
    """

    accuracy: float
    spread: float
    class_accuracy: np.ndarray
    class_spread: np.ndarray
    repeated: int
    nearest: np.ndarray
    nearest_index: np.ndarray


def class_report(images: np.ndarray, labels: np.ndarray, real: LabelledImages, most_real: int = 5000) -> ClassReport:
    """Judge samples by a support vector machine (RBF kernel, C = 10) that was trained on real images.

    Args:
        images: samples, uint8 [N, H, W, C], of the real images' shape. labels: the class asked for, int64 [N], all classes.
        real: the real images. most_real: how many of them, evenly picked, train the classifier.
    Raises: ValueError for images of another shape or a class without a sample; ModuleNotFoundError without scikit-learn.
    """
    _require_alike(images, real)
    missing = set(range(real.num_classes)) - set(np.unique(labels).tolist())
    if missing:
        raise ValueError(f"class {real.class_names[min(missing)]!r} has no sample; draw all labels")
    right = classify(images, real, most_real) == labels
    classes = range(real.num_classes)
    class_spread = np.array([_spread(images[labels == k]) / _spread(real.images[real.labels == k]) for k in classes])
    nearest_index, nearest = _nearest(_flat(images), _flat(real.images))
    return ClassReport(
        accuracy=float(right.mean()),
        spread=float(class_spread.mean()),
        class_accuracy=np.array([right[labels == k].mean() for k in classes]),
        class_spread=class_spread,
        repeated=len(images) - len(np.unique(_flat(images), axis=0)),
        nearest=nearest * 255.0,
        nearest_index=nearest_index,
    )


def classify(images: np.ndarray, real: LabelledImages, most_real: int = 5000) -> np.ndarray:
    """The class that a support vector machine (RBF kernel, C = 10), trained on real images, sees in each image.

    Args: images: uint8 [N, H, W, C], of the real images' shape. most_real: how many real images, evenly picked, train it.
    Returns: int64 [N].
    Raises: ValueError for images of another shape; ModuleNotFoundError without scikit-learn.
    """
    from sklearn.svm import SVC

    _require_alike(images, real)
    picked = np.unique(np.linspace(0, len(real) - 1, min(most_real, len(real))).round().astype(np.int64))
    seen: np.ndarray = SVC(C=10).fit(_flat(real.images[picked]), real.labels[picked]).predict(_flat(images))
    return seen


def _require_alike(images: np.ndarray, real: LabelledImages) -> None:
    if images.shape[1:] != real.images.shape[1:]:
        raise ValueError(f"samples are {images.shape[1:]} and real images {real.images.shape[1:]}; they must be alike")


def _flat(images: np.ndarray) -> np.ndarray:
    """float32 [N, H W C] in [0, 1]."""
    return images.reshape(len(images), -1).astype(np.float32) / 255.0


def _spread(images: np.ndarray) -> float:
    return float(images.astype(np.float64).std(axis=0).mean())


def _nearest(samples: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of and root-mean-square distance to the nearest row of `real`, for each row of `samples`."""
    index, distance = [], []
    for row in samples:
        square = np.square(real - row).mean(axis=1)
        index.append(int(square.argmin()))
        distance.append(float(np.sqrt(square.min())))
    return np.array(index, dtype=np.int64), np.array(distance)
