"""open_dataset: the built-in sets, the arguments, and which reader a source belongs to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastcond.data import LabelledImages, open_dataset


@pytest.fixture
def arrays(tmp_path, rng):
    """Paths of six 8x8 images of three classes and of their labels."""
    np.save(tmp_path / "images.npy", rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8))
    np.save(tmp_path / "labels.npy", np.array([0, 1, 2, 0, 1, 2]))
    return tmp_path / "images.npy", tmp_path / "labels.npy"


def test_digits_are_scikit_learns_scaled_to_bytes():
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    original = sklearn_datasets.load_digits()
    digits = open_dataset("digits")
    assert digits.images.dtype == np.uint8 and digits.images.shape == (1797, 8, 8, 1)
    np.testing.assert_array_equal(digits.images[..., 0], np.rint(original.images * 255 / 16))
    assert digits.images.max() == 255
    np.testing.assert_array_equal(digits.labels, original.target)
    assert digits.class_names == tuple("0123456789")


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match=r'^the digits come with scikit-learn: pip install "fastcond\[digits\]"$'):
        open_dataset("digits")


def test_sprites_are_the_generators():
    sprites = pytest.importorskip("fastcond.data.sprites")
    images, labels = sprites.draw_sprites()
    dataset = open_dataset("sprites")
    np.testing.assert_array_equal(dataset.images, images)
    np.testing.assert_array_equal(dataset.labels, labels)
    assert dataset.class_names == tuple(sprites.CLASS_NAMES)


@pytest.mark.parametrize("source", ["./digits", Path("digits")], ids=["with ./", "as a Path"])
def test_a_folder_called_digits_is_reached_by_its_path(tmp_path, monkeypatch, cats_and_dogs, source):
    pytest.importorskip("sklearn")
    cats_and_dogs.rename(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    assert open_dataset(source).class_names == ("cat", "dog")
    assert open_dataset("digits").num_classes == 10  # the built-in set wins


def test_the_result_describes_itself(arrays):
    dataset = open_dataset(arrays[0], labels=arrays[1])
    assert isinstance(dataset, LabelledImages)
    assert (len(dataset), dataset.num_classes, dataset.image_size, dataset.channels) == (6, 3, (8, 8), 3)
    assert dataset.class_names == ("0", "1", "2")
    assert dataset.images.dtype == np.uint8 and dataset.labels.dtype == np.int64


def test_sources_and_labels_may_be_text_and_begin_with_a_tilde(arrays, monkeypatch):
    monkeypatch.setenv("HOME", str(arrays[0].parent))
    assert len(open_dataset("~/images.npy", labels="~/labels.npy")) == 6


def test_numbered_classes_can_be_named(arrays):
    assert open_dataset(arrays[0], labels=arrays[1], class_names=["a", "b", "c"]).class_names == ("a", "b", "c")


def test_class_names_of_another_count(arrays):
    with pytest.raises(ValueError, match="2 class names for 3 classes; give one a class"):
        open_dataset(arrays[0], labels=arrays[1], class_names=["a", "b"])


def test_class_names_given_twice(arrays):
    with pytest.raises(ValueError, match="the class name 'a' is given twice"):
        open_dataset(arrays[0], labels=arrays[1], class_names=["a", "b", "a"])


def test_class_names_do_not_replace_a_sources_own(cats_and_dogs):
    with pytest.raises(ValueError, match=r"names its classes itself \(cat, dog\)"):
        open_dataset(cats_and_dogs, class_names=["dog", "cat"])


@pytest.mark.parametrize("size", [0, -4, (8, 0)])
def test_a_side_below_one_pixel(arrays, size):
    with pytest.raises(ValueError, match=r"size .*: sides must be at least 1 pixel"):
        open_dataset(arrays[0], labels=arrays[1], size=size)


@pytest.mark.parametrize("size", [8.0, "8", (8,), (8, 8, 3)])
def test_a_size_that_is_none(arrays, size):
    with pytest.raises(ValueError, match=r"size .*: give one number of pixels or a pair \(height, width\)"):
        open_dataset(arrays[0], labels=arrays[1], size=size)


def test_arrays_are_resized_too(arrays):
    original = open_dataset(arrays[0], labels=arrays[1])
    halved = open_dataset(arrays[0], labels=arrays[1], size=(4, 4))
    means = original.images.reshape(6, 4, 2, 4, 2, 3).mean(axis=(2, 4))
    assert halved.image_size == (4, 4)
    np.testing.assert_allclose(halved.images, means, atol=0.5)
    assert open_dataset(arrays[0], labels=arrays[1], size=8).images is not None
    np.testing.assert_array_equal(open_dataset(arrays[0], labels=arrays[1], size=8).images, original.images)


def test_a_missing_path_says_what_data_can_be(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such file or folder; data is one of: sprites, digits, .*"):
        open_dataset(tmp_path / "nowhere")


@pytest.mark.parametrize(("name", "shown"), [("data.csv", r"\.csv"), ("data", r"\(none\)")])
def test_an_unknown_extension_says_what_data_can_be(tmp_path, name, shown):
    (tmp_path / name).write_text("x")
    with pytest.raises(ValueError, match=rf"the extension {shown} is not known; data is one of: sprites, digits, "):
        open_dataset(tmp_path / name)


def test_a_single_image_is_no_data_set(tmp_path, save):
    path = save(tmp_path / "one.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match=r"one\.png: is a single image; give a folder with one folder a class"):
        open_dataset(path)


def test_labels_for_a_source_that_has_its_own(cats_and_dogs, arrays):
    with pytest.raises(ValueError, match=r"pets: has labels of its own; --labels is for IMAGES\.npy and IDX files"):
        open_dataset(cats_and_dogs, labels=arrays[1])
    with pytest.raises(ValueError, match="digits: has labels of its own"):
        open_dataset("digits", labels=arrays[1])


def test_every_message_is_one_line(tmp_path, arrays, cats_and_dogs):
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "float.npy", np.zeros((6, 8, 8, 3), np.float32))
    failing = [
        (tmp_path / "nowhere", None),
        (tmp_path / "empty", None),
        (arrays[0], None),
        (tmp_path / "float.npy", arrays[1]),
        (cats_and_dogs, arrays[1]),
    ]
    for source, labels in failing:
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            open_dataset(source, labels=labels)
        assert "\n" not in str(caught.value) and len(str(caught.value)) > 30


def test_the_package_needs_numpy_and_pillow_only():
    """Neither torch nor scikit-learn is loaded by opening a folder's reader, and no other part of the project."""
    package = Path(sys.modules["fastcond.data"].__file__).parent
    # A namespace stands in for fastcond, whose own __init__ may import anything.
    code = (
        "import sys, types; fastcond = types.ModuleType('fastcond');"
        f"fastcond.__path__ = [{str(package.parent)!r}]; sys.modules['fastcond'] = fastcond;"
        "import fastcond.data;"
        "print([m for m in sys.modules if m.split('.')[0] in ('torch', 'sklearn', 'scipy')"
        " or m.startswith('fastcond.') and not m.startswith('fastcond.data')])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_crawl_tiles(real_data):
    dataset = open_dataset(real_data("crawl-tiles"))
    assert dataset.images.shape == (2009, 32, 32, 3)
    assert dataset.class_names == ("floor", "item", "monster", "spell", "wall")
    assert np.bincount(dataset.labels).tolist() == [367, 580, 560, 201, 301]
    small = open_dataset(real_data("crawl-tiles"), size=16)
    means = dataset.images.reshape(-1, 16, 2, 16, 2, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(small.images, means, atol=0.5)
    np.testing.assert_array_equal(small.labels, dataset.labels)


def test_tiles_16(real_data):
    folder = real_data("tiles-16")
    dataset = open_dataset(folder / "tiles_16x16.npy", labels=folder / "tile_labels_16x16.npy")
    assert dataset.images.shape == (2009, 16, 16, 3) and isinstance(dataset.images, np.memmap)
    one_hot = np.load(folder / "tile_labels_16x16.npy")
    np.testing.assert_array_equal(np.eye(5)[dataset.labels], one_hot)
