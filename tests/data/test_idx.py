"""MNIST's IDX files."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from fastcond.data import open_dataset

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 5, 4), dtype=np.uint8)
LABELS = np.array([2, 0, 1, 0, 1, 2])


@pytest.fixture
def pair(tmp_path, write_idx):
    """pair(prefix, suffix): image and label files named as MNIST's are; returns the path of the images."""

    def write(prefix="train", suffix="", images=IMAGES, labels=LABELS):
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte{suffix}", labels)
        return write_idx(tmp_path / f"{prefix}-images-idx3-ubyte{suffix}", images)

    return write


def check(dataset):
    np.testing.assert_array_equal(dataset.images, IMAGES[..., None])
    np.testing.assert_array_equal(dataset.labels, LABELS)
    assert dataset.images.dtype == np.uint8 and dataset.class_names == ("0", "1", "2")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_labels_are_found_beside_the_images(pair, suffix):
    check(open_dataset(pair(suffix=suffix)))


@pytest.mark.parametrize(("of_images", "of_labels"), [("", ".gz"), (".gz", "")])
def test_one_of_the_two_may_be_gzipped(tmp_path, write_idx, of_images, of_labels):
    images = write_idx(tmp_path / f"train-images-idx3-ubyte{of_images}", IMAGES)
    write_idx(tmp_path / f"train-labels-idx1-ubyte{of_labels}", LABELS)
    check(open_dataset(images))


def test_names_with_a_dot(tmp_path, write_idx):
    write_idx(tmp_path / "train-labels.idx1-ubyte", LABELS)
    check(open_dataset(write_idx(tmp_path / "train-images.idx3-ubyte", IMAGES)))
    check(open_dataset(tmp_path))


def test_labels_may_be_given(tmp_path, write_idx):
    images = write_idx(tmp_path / "pictures.gz", IMAGES)
    labels = write_idx(tmp_path / "answers", LABELS)
    check(open_dataset(images, labels=labels))
    with pytest.raises(ValueError, match=r"pictures\.gz: its name does not tell where its labels are; .* --labels"):
        open_dataset(images)


def test_a_folder_gives_its_training_set(tmp_path, pair):
    pair("t10k", ".gz", images=IMAGES[:3], labels=LABELS[:3])
    pair("train", ".gz")
    check(open_dataset(tmp_path))
    pair("train")  # unpacked beside its .gz: still one set
    check(open_dataset(tmp_path))


def test_a_folder_with_several_training_sets(tmp_path, pair):
    pair("emnist-letters-train")
    pair("emnist-digits-train")
    with pytest.raises(ValueError, match=r"several training sets \(emnist-digits-train.*\); give the path of one"):
        open_dataset(tmp_path)


def test_missing_labels(pair, tmp_path):
    images = pair()
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"train-labels-idx1-ubyte: no such file; --labels names the IDX file"):
        open_dataset(images)


@pytest.mark.parametrize(("change", "found"), [(-7, 129), (5, 141)])
def test_truncated_or_too_long(pair, change, found):
    images = pair()
    data = images.read_bytes()
    images.write_bytes(data[:change] if change < 0 else data + bytes(change))
    with pytest.raises(ValueError, match=rf"train-images-idx3-ubyte: 136 bytes expected, {found} found"):
        open_dataset(images)


def test_truncated_header(pair):
    images = pair()
    images.write_bytes(images.read_bytes()[:10])
    with pytest.raises(ValueError, match="is truncated: a header of 16 bytes expected, 10 found"):
        open_dataset(images)


def test_truncated_gzip(pair):
    images = pair(suffix=".gz")
    images.write_bytes(images.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"idx3-ubyte\.gz: is not gzip or is truncated \(.*\); download it again"):
        open_dataset(images)


@pytest.mark.parametrize(("data", "shown"), [(b"\x89PNG....", "89504e47"), (b"", "nothing")])
def test_wrong_magic(pair, data, shown):
    images = pair(suffix=".gz")
    images.write_bytes(gzip.compress(data))
    with pytest.raises(ValueError, match=rf"begins with {shown}; an IDX file of images begins with 00000803"):
        open_dataset(images)


def test_images_and_labels_exchanged(pair, tmp_path):
    images = pair()
    with pytest.raises(ValueError, match="begins with 00000803; an IDX file of labels begins with 00000801"):
        open_dataset(images, labels=images)


def test_another_number_of_labels(pair):
    with pytest.raises(ValueError, match="6 images but 5 labels"):
        open_dataset(pair(labels=LABELS[:5]))


def test_classes_can_be_named(pair):
    assert open_dataset(pair(), class_names=["shirt", "shoe", "bag"]).class_names == ("shirt", "shoe", "bag")
