"""IMAGES.npy with LABELS.npy, .npz, and labels in all their forms."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastcond.data import open_dataset
from fastcond.data.arrays import as_images
from fastcond.data.labels import as_labels

IMAGES = np.arange(6 * 4 * 5 * 3, dtype=np.int64).reshape(6, 4, 5, 3).astype(np.uint8)
LABELS = np.array([0, 1, 2, 2, 1, 0])


@pytest.fixture
def open_npy(tmp_path):
    """open_npy(images, labels): through files."""

    def write_and_open(images, labels, **options):
        np.save(tmp_path / "images.npy", images)
        np.save(tmp_path / "labels.npy", labels)
        return open_dataset(tmp_path / "images.npy", labels=tmp_path / "labels.npy", **options)

    return write_and_open


@pytest.fixture
def open_npz(tmp_path):
    def write_and_open(**arrays):
        np.savez(tmp_path / "set.npz", **arrays)
        return open_dataset(tmp_path / "set.npz")

    return write_and_open


# Labels.


@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=50),
    st.sampled_from(["bool", "uint8", "int16", "int64", "uint64", "float16", "float32", "float64"]),
)
def test_integers_and_one_hot_rows_mean_the_same(values, dtype):
    # Every class needs an image, so the classes in use are numbered without gaps first.
    values = np.unique(values, return_inverse=True)[1]
    num_classes = values.max() + 1
    labels, found = as_labels(np.eye(num_classes)[values].astype(dtype), "labels")
    np.testing.assert_array_equal(labels, values)
    assert labels.dtype == np.int64 and found == num_classes
    if dtype != "bool" or num_classes <= 2:
        for form in (values, values[:, None]):  # a column, as CIFAR's labels often are, is not one-hot
            again, found = as_labels(form.astype(dtype), "labels")
            np.testing.assert_array_equal(again, values)
            assert again.dtype == np.int64 and found == num_classes


def test_a_column_of_ones_is_one_hot_of_one_class(open_npy):
    assert open_npy(IMAGES, np.ones((6, 1))).num_classes == 1


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf])
def test_a_label_that_is_not_whole(open_npy, value):
    with pytest.raises(ValueError, match=rf"label {value} of image 3 is not an integer"):
        open_npy(IMAGES, np.array([0, 1, 2, value, 0, 1]))


def test_a_negative_label(open_npy):
    with pytest.raises(ValueError, match="label -1 of image 2 is negative; labels start at 0"):
        open_npy(IMAGES, np.array([0, 1, -1, 0, 1, 2]))


@pytest.mark.parametrize(("row", "total"), [([0, 0, 0], "0"), ([1, 1, 0], "2"), ([0.5, 0.5, 0], "1"), ([2, -1, 0], "1")])
def test_a_row_that_is_not_one_hot(open_npy, row, total):
    rows = np.eye(3)[LABELS]
    rows[4] = row
    with pytest.raises(ValueError, match=rf"label of image 4 is not one-hot: its 3 values sum to {total};"):
        open_npy(IMAGES, rows)


ROWS = np.array([[0.5, 0.5, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1], [-2, 0.25, 3], [0, 1, 0]])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rows_of_any_numbers_are_kept_where_asked_for(open_npy, dtype):
    dataset = open_npy(IMAGES, ROWS.astype(dtype), label_rows=True)
    assert dataset.labels.dtype == np.float32 and dataset.class_names == ("0", "1", "2")
    np.testing.assert_array_equal(dataset.labels, ROWS)
    with pytest.raises(ValueError, match=r"image 0 is not one-hot: .*; soft rows .* are for --conditioning label-attention"):
        open_npy(IMAGES, ROWS.astype(dtype))


def test_rows_of_an_npz_are_kept_too(tmp_path):
    np.savez(tmp_path / "both.npz", images=IMAGES, labels=ROWS, class_names=np.array(["a", "b", "c"]))
    dataset = open_dataset(tmp_path / "both.npz", label_rows=True)
    np.testing.assert_array_equal(dataset.labels, ROWS)
    labels, names = dataset.shown_labels(4)
    np.testing.assert_array_equal(labels, ROWS[:4])
    assert names == ("a:0.5 b:0.5", "a:1 b:1", "none", "c:1")


@pytest.mark.parametrize("labels", [LABELS, np.eye(3)[LABELS]])
def test_classes_stay_classes_where_rows_are_asked_for(open_npy, labels):
    dataset = open_npy(IMAGES, labels, label_rows=True)
    assert dataset.labels.dtype == np.int64 and dataset.labels.tolist() == LABELS.tolist()
    shown, names = dataset.shown_labels(2)
    assert shown.tolist() == [0, 1] and names == ("0", "1")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_a_row_that_is_not_finite(open_npy, value):
    rows = ROWS.copy()
    rows[4, 1] = value
    with pytest.raises(ValueError, match="the label of image 4 holds a number that is not finite in float32"):
        open_npy(IMAGES, rows, label_rows=True)


def test_a_class_that_no_row_has(open_npy):
    with pytest.raises(ValueError, match="label 2 has no image"):
        open_npy(IMAGES, ROWS * [1, 1, 0], label_rows=True)


def test_another_number_of_labels(open_npy):
    with pytest.raises(ValueError, match="6 images but 5 labels; give one label for each image"):
        open_npy(IMAGES, LABELS[:5])


def test_labels_that_are_text(open_npy):
    with pytest.raises(ValueError, match="labels are <U3, not numbers"):
        open_npy(IMAGES, np.array(["cat"] * 6))


def test_labels_of_too_many_axes(open_npy):
    with pytest.raises(ValueError, match=r"labels have shape \[6, 1, 1\]; give integers \[N\] or one-hot rows"):
        open_npy(IMAGES, LABELS[:, None, None])


def test_a_single_number_is_no_labels(open_npy):
    with pytest.raises(ValueError, match="6 images but 1 labels"):
        open_npy(IMAGES, np.array(3))


def test_a_label_that_no_image_has(open_npy):
    with pytest.raises(ValueError, match=r"label 1 has no image \(labels run 0 to 5, 3 of them unused\)"):
        open_npy(IMAGES, np.array([0, 2, 5, 0, 2, 5]))
    with pytest.raises(ValueError, match="label 3 has no image"):
        open_npy(IMAGES, np.eye(4)[LABELS])


def test_a_label_beyond_reason(open_npy):
    with pytest.raises(ValueError, match="label 1099511627776 of image 5 leaves labels with no image"):
        open_npy(IMAGES, np.array([0, 1, 2, 3, 4, 2**40]))


# Images.


@given(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20), st.integers(1, 5))
def test_images_keep_their_pixels_in_any_shape(count, height, width, channels):
    images = np.random.default_rng(0).integers(0, 256, (count, height, width, channels), dtype=np.uint8)
    as_they_stand = height not in (1, 3) or channels in (1, 3)
    if as_they_stand:
        np.testing.assert_array_equal(as_images(images, "images"), images)
    if channels in (1, 3) and width not in (1, 3):
        np.testing.assert_array_equal(as_images(np.moveaxis(images, 3, 1), "images"), images)
    np.testing.assert_array_equal(as_images(images[..., 0], "images"), images[..., :1])


def test_images_are_mapped_not_read(open_npy):
    dataset = open_npy(IMAGES, LABELS)
    assert isinstance(dataset.images, np.memmap) and not dataset.images.flags.writeable
    np.testing.assert_array_equal(dataset.images, IMAGES)
    np.testing.assert_array_equal(dataset.labels, LABELS)


@pytest.mark.parametrize(
    ("images", "shown"),
    [
        (IMAGES / np.float32(255), r"float32 in \[0, 1\]"),
        (IMAGES / 127.5 - 1, r"float64 in \[-1, 1\]"),
        (IMAGES.astype(np.int64), r"int64 in \[0, 255\]"),
        (IMAGES > 9, r"bool in \[0, 1\]"),
    ],
)
def test_other_dtypes_are_not_guessed(open_npy, images, shown):
    with pytest.raises(ValueError, match=rf"images are {shown}; convert them to uint8 in 0\.\.255"):
        open_npy(images, LABELS)


@pytest.mark.parametrize("shape", [(6, 60), (6, 1, 4, 5, 3), (6, 0, 4, 3)])
def test_other_shapes(open_npy, shape):
    with pytest.raises(ValueError, match=rf"images have shape \[{', '.join(map(str, shape))}\]; give \[N, H, W\], "):
        open_npy(np.zeros(shape, np.uint8), LABELS)


def test_no_images(open_npy):
    with pytest.raises(ValueError, match=r"holds no images|is damaged"):
        open_npy(IMAGES[:0], LABELS[:0])


def test_npy_without_labels(tmp_path):
    np.save(tmp_path / "images.npy", IMAGES)
    with pytest.raises(ValueError, match=r"needs its labels; give them with --labels LABELS\.npy"):
        open_dataset(tmp_path / "images.npy")


def test_missing_or_other_label_files(tmp_path):
    np.save(tmp_path / "images.npy", IMAGES)
    with pytest.raises(FileNotFoundError, match=r"none\.npy: no such file; --labels names the file"):
        open_dataset(tmp_path / "images.npy", labels=tmp_path / "none.npy")
    with pytest.raises(ValueError, match=r"labels\.csv: labels of an \.npy are read from an \.npy"):
        open_dataset(tmp_path / "images.npy", labels=tmp_path / "labels.csv")


# Nothing is unpickled, and damage is seen.


class Trap:
    """Unpickling it calls `pytest.fail`."""

    def __reduce__(self):
        return pytest.fail, ("something was unpickled",)


@pytest.mark.parametrize("which", ["images", "labels"])
def test_pickled_npy_is_refused(tmp_path, which):
    arrays = {"images": IMAGES, "labels": LABELS}
    arrays[which] = np.array([Trap()] * 6, dtype=object)
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    with pytest.raises(ValueError, match=rf"{which}\.npy: holds pickled Python objects, which are never loaded"):
        open_dataset(tmp_path / "images.npy", labels=tmp_path / "labels.npy")


@pytest.mark.parametrize("key", ["images", "labels", "class_names"])
def test_pickled_npz_is_refused(open_npz, key):
    with pytest.raises(ValueError, match=r"set\.npz: holds pickled Python objects, which are never loaded"):
        open_npz(**{"images": IMAGES, "labels": LABELS, key: np.array([Trap()] * 6, dtype=object)})


@pytest.mark.parametrize("name", ["images.npy", "set.npz"])
def test_a_pickle_under_another_name_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps(Trap()))
    np.save(tmp_path / "labels.npy", LABELS)
    with pytest.raises(ValueError, match=rf"{name}: is not a NumPy file or is damaged"):
        open_dataset(tmp_path / name, labels=tmp_path / "labels.npy" if name.endswith(".npy") else None)


@pytest.mark.parametrize("kept", [0.9, 0.2, 0.0])
def test_truncated_npy(tmp_path, kept):
    for name, array in {"images": IMAGES, "labels": LABELS}.items():
        np.save(tmp_path / f"{name}.npy", array)
    data = (tmp_path / "images.npy").read_bytes()
    (tmp_path / "images.npy").write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ValueError, match=r"images\.npy: is not a NumPy file or is damaged \(.*\); save it again"):
        open_dataset(tmp_path / "images.npy", labels=tmp_path / "labels.npy")


# .npz


@pytest.mark.parametrize("keys", [("images", "labels"), ("arr_0", "arr_1")])
def test_npz(open_npz, keys):
    dataset = open_npz(**dict(zip(keys, (IMAGES, np.eye(3)[LABELS]), strict=True)))
    np.testing.assert_array_equal(dataset.images, IMAGES)
    np.testing.assert_array_equal(dataset.labels, LABELS)
    assert dataset.class_names == ("0", "1", "2")


@pytest.mark.parametrize("dtype", [str, bytes])
def test_npz_with_class_names(open_npz, dtype):
    names = np.array(["ant", "bee", "cow"]).astype(dtype)
    assert open_npz(images=IMAGES, labels=LABELS, class_names=names).class_names == ("ant", "bee", "cow")


def test_npz_without_labels(open_npz):
    with pytest.raises(ValueError, match="holds images, x; it needs images and labels, or arr_0 and arr_1"):
        open_npz(images=IMAGES, x=LABELS)


def test_npz_with_too_few_or_too_many_class_names(open_npz):
    with pytest.raises(ValueError, match=r"labels reach 2 but there are 2 classes \(ant, bee\)"):
        open_npz(images=IMAGES, labels=LABELS, class_names=np.array(["ant", "bee"]))
    with pytest.raises(ValueError, match=r"label 3 \(dog\) has no image"):
        open_npz(images=IMAGES, labels=LABELS, class_names=np.array(["ant", "bee", "cow", "dog"]))


def test_npz_with_class_names_that_are_no_texts(open_npz):
    with pytest.raises(ValueError, match="class_names are int64 of 1 dimensions; store a list of texts"):
        open_npz(images=IMAGES, labels=LABELS, class_names=np.arange(3))


def test_npz_with_a_name_given_twice(open_npz):
    with pytest.raises(ValueError, match="the class name 'ant' is given twice"):
        open_npz(images=IMAGES, labels=LABELS, class_names=np.array(["ant", "bee", "ant"]))


def test_damaged_npz(tmp_path):
    np.savez(tmp_path / "set.npz", images=IMAGES, labels=LABELS)
    data = bytearray((tmp_path / "set.npz").read_bytes())
    data[300] ^= 0xFF  # a pixel: the zip's checksum tells
    (tmp_path / "set.npz").write_bytes(data)
    with pytest.raises(ValueError, match=r"set\.npz: is not a NumPy file or is damaged \(Bad CRC-32"):
        open_dataset(tmp_path / "set.npz")
