"""CIFAR's binary batches."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from fastcond.data import open_dataset

NAMES10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NAMES100 = tuple(f"thing{n:02}" for n in range(100))


def records(images, *labels):
    """Images [N, 32, 32, 3] as the binary version's records: label bytes, then a plane a channel."""
    planes = np.moveaxis(images, 3, 1).reshape(len(images), -1)
    return np.concatenate([np.stack(labels, axis=1).astype(np.uint8), planes], axis=1).tobytes()


@pytest.fixture
def cifar10(tmp_path, rng):
    """Five batches of 4 images, classes in turn; returns (folder, images)."""
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    images = rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    for batch in range(5):
        part = slice(batch * 4, batch * 4 + 4)
        data = records(images[part], np.arange(20)[part] % 10)
        (folder / f"data_batch_{batch + 1}.bin").write_bytes(data)
    (folder / "batches.meta.txt").write_text("\n".join(NAMES10) + "\n\n")  # the original ends with an empty line
    return folder, images


@pytest.fixture
def cifar100(tmp_path, rng):
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    images = rng.integers(0, 256, (100, 32, 32, 3), dtype=np.uint8)
    fine = np.arange(100)[::-1]
    (folder / "train.bin").write_bytes(records(images, fine // 5, fine))
    (folder / "fine_label_names.txt").write_text("\n".join(NAMES100) + "\n")
    return folder, images


def test_cifar10_folder(cifar10):
    folder, images = cifar10
    dataset = open_dataset(folder)
    np.testing.assert_array_equal(dataset.images, images)
    np.testing.assert_array_equal(dataset.labels, np.arange(20) % 10)
    assert dataset.class_names == NAMES10 and dataset.images.dtype == np.uint8


def test_cifar100_folder_has_fine_labels(cifar100):
    folder, images = cifar100
    dataset = open_dataset(folder)
    np.testing.assert_array_equal(dataset.images, images)
    np.testing.assert_array_equal(dataset.labels, np.arange(100)[::-1])
    assert dataset.class_names == NAMES100


@pytest.mark.parametrize("name", ["test_batch.bin", "renamed.bin"])
def test_one_file_of_cifar10(tmp_path, rng, name):
    images = rng.integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    (tmp_path / name).write_bytes(records(images, np.arange(10)))
    dataset = open_dataset(tmp_path / name)
    np.testing.assert_array_equal(dataset.images, images)
    assert dataset.class_names == tuple("0123456789")  # no names beside it


@pytest.mark.parametrize("name", ["test.bin", "renamed.bin"])
def test_one_file_of_cifar100(cifar100, name):
    folder, images = cifar100
    (folder / "train.bin").rename(folder / name)
    dataset = open_dataset(folder / name)
    np.testing.assert_array_equal(dataset.images, images)
    assert dataset.class_names == NAMES100


@pytest.mark.parametrize(("length", "expected"), [(10000, "12292 bytes (4 records of 3073)"), (0, "3073 bytes (1 rec")])
def test_truncated_batch(cifar10, length, expected):
    path = cifar10[0] / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError) as caught:
        open_dataset(cifar10[0])
    assert f"data_batch_3.bin: is truncated: {expected}" in str(caught.value)
    assert f"expected, {length} found" in str(caught.value)


def test_a_bin_that_is_not_cifar(tmp_path):
    (tmp_path / "weights.bin").write_bytes(bytes(5000))
    with pytest.raises(ValueError, match=r"weights\.bin: 5000 bytes are not CIFAR-10's records of 3073 bytes or"):
        open_dataset(tmp_path / "weights.bin")


def test_missing_batch(cifar10):
    (cifar10[0] / "data_batch_4.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"data_batch_4\.bin: is missing from CIFAR's binary version"):
        open_dataset(cifar10[0])


def test_names_of_another_count(cifar10):
    (cifar10[0] / "batches.meta.txt").write_text("cat\ndog\n")
    with pytest.raises(ValueError, match=r"batches\.meta\.txt: 10 class names expected, 2 found"):
        open_dataset(cifar10[0])


def test_a_label_out_of_range(tmp_path, rng):
    images = rng.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    (tmp_path / "data_batch_1.bin").write_bytes(records(images, np.arange(12)))
    with pytest.raises(ValueError, match=r"labels reach 11 but there are 10 classes \(0, 1, 2, \.\.\.\)"):
        open_dataset(tmp_path / "data_batch_1.bin")


class Trap:
    def __reduce__(self):
        return pytest.fail, ("something was unpickled",)


@pytest.mark.parametrize("files", [("data_batch_1", "batches.meta"), ("train", "test", "meta")])
def test_the_pickled_version_is_refused(tmp_path, files):
    for name in files:
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match=r"Python version, which is pickled and never loaded; get the binary version"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("name", ["cifar-10-python.tar.gz", "cifar.tgz", "cifar.tar", "train.pkl", "train.pickle"])
def test_archives_and_pickles_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match=r"not read \(nothing is unpickled\); for CIFAR, get the binary version"):
        open_dataset(tmp_path / name)
