"""The judge: right on real images, wrong on wrong ones, and it sees missing variety and copies."""

from __future__ import annotations

import numpy as np
import pytest

from fastcond.data import LabelledImages, open_dataset
from fastcond.evaluation import class_report


@pytest.fixture(scope="module")
def digits() -> LabelledImages:
    pytest.importorskip("sklearn")
    return open_dataset("digits")


def halves(data: LabelledImages) -> tuple[LabelledImages, np.ndarray, np.ndarray]:
    return LabelledImages(data.images[::2], data.labels[::2], data.class_names), data.images[1::2], data.labels[1::2]


def test_unseen_real_images_pass(digits: LabelledImages) -> None:
    real, images, labels = halves(digits)
    report = class_report(images, labels, real)
    assert report.accuracy > 0.97 and report.class_accuracy.min() > 0.9
    assert 0.95 < report.spread < 1.05 and report.repeated == 0
    assert report.nearest.min() > 0


def test_images_of_the_wrong_class_fail(digits: LabelledImages) -> None:
    real, images, labels = halves(digits)
    assert class_report(images, (labels + 1) % 10, real).accuracy < 0.02


def test_one_image_for_all_has_no_spread_and_is_repeated(digits: LabelledImages) -> None:
    first = [int(np.flatnonzero(digits.labels == label)[0]) for label in range(10)]
    labels = np.repeat(np.arange(10), 5)
    report = class_report(digits.images[first].repeat(5, axis=0), labels, digits)
    assert report.spread < 1e-6 and report.repeated == 40


def test_copies_are_found(digits: LabelledImages) -> None:
    picked = np.arange(0, 1797, 60)
    report = class_report(digits.images[picked], digits.labels[picked], digits)
    assert report.nearest_index.tolist() == picked.tolist() and report.nearest.max() == 0


def test_what_cannot_be_judged_is_refused(digits: LabelledImages) -> None:
    with pytest.raises(ValueError, match="must be alike"):
        class_report(digits.images[:, :4], digits.labels, digits)
    with pytest.raises(ValueError, match="class '9' has no sample"):
        class_report(digits.images[digits.labels < 9], digits.labels[digits.labels < 9], digits)
