"""EDM's dataset.json, in a zip or a folder."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from fastcond.data import open_dataset

NAMES = ("00000/img00000000.png", "00000/img00000001.png", "00001/img00000002.png")


@pytest.fixture(params=["zip", "wrapped zip", "folder"])
def edm(request, tmp_path, rng):
    """edm(index): three 4x6 images with this dataset.json, as a zip or a folder; returns (path, images)."""

    def build(index, names=NAMES):
        images = rng.integers(0, 256, (len(names), 4, 6, 3), dtype=np.uint8)
        files = {"dataset.json": index if isinstance(index, bytes) else json.dumps(index).encode()}
        for name, pixels in zip(names, images, strict=True):
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            files[name] = buffer.getvalue()
        if request.param == "folder":
            path = tmp_path / "set"
            for name, data in files.items():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                (path / name).write_bytes(data)
        else:
            path = tmp_path / "set.zip"
            prefix = "set/" if request.param == "wrapped zip" else ""
            with zipfile.ZipFile(path, "w") as archive:
                for name, data in files.items():
                    archive.writestr(prefix + name, data)
        return path, images

    return build


def test_images_come_sorted_with_their_labels(edm):
    labels = [1, 0, 2]
    path, images = edm({"labels": [[NAMES[i], labels[i]] for i in (2, 0, 1)]})
    dataset = open_dataset(path)
    np.testing.assert_array_equal(dataset.images, images)
    assert dataset.labels.tolist() == labels and dataset.class_names == ("0", "1", "2")


def test_one_hot_labels_an_object_and_backslashes(edm):
    path, _ = edm({"labels": {NAMES[0]: [0, 1], NAMES[1].replace("/", "\\"): [1, 0], NAMES[2]: [0, 1]}})
    assert open_dataset(path).labels.tolist() == [1, 0, 1]


def test_size(edm):
    path, _ = edm({"labels": [[name, 0] for name in NAMES]})
    assert open_dataset(path, size=2).images.shape == (3, 2, 2, 3)


def test_an_image_at_the_top(edm):
    path, _ = edm({"labels": [["a.png", 0], ["b.png", 1]]}, names=("a.png", "b.png"))
    assert open_dataset(path).labels.tolist() == [0, 1]


def test_a_missing_file(edm):
    path, _ = edm({"labels": [[name, 0] for name in (*NAMES, "00009/gone.png", "00009/lost.png")]})
    with pytest.raises(ValueError, match=r"dataset\.json names 00009/gone\.png, which is missing \(2 in all\)"):
        open_dataset(path)


def test_an_image_without_a_line(edm):
    path, _ = edm({"labels": [[name, 0] for name in NAMES[:2]]})
    with pytest.raises(ValueError, match=r"dataset\.json has no labels for 1 images \(the first is 00001/img00000002"):
        open_dataset(path)


@pytest.mark.parametrize("index", [{"labels": None}, {}, {"labels": []}, []], ids=str)
def test_null_labels(edm, index):
    path, _ = edm(index)
    with pytest.raises(ValueError, match=r"dataset\.json has no labels; it needs \{\"labels\": \[\["):
        open_dataset(path)


def test_one_null_label(edm):
    path, _ = edm({"labels": [[NAMES[0], 0], [NAMES[1], None], [NAMES[2], 0]]})
    with pytest.raises(ValueError, match=rf"dataset\.json has no labels for {NAMES[1]} \(null\)"):
        open_dataset(path)


def test_a_name_twice(edm):
    path, _ = edm({"labels": [[name, 0] for name in (*NAMES, NAMES[0])]})
    with pytest.raises(ValueError, match=rf"dataset\.json names {NAMES[0]} twice; keep one line an image"):
        open_dataset(path)


def test_integers_mixed_with_lists(edm):
    path, _ = edm({"labels": [[NAMES[0], 0], [NAMES[1], [0, 1]], [NAMES[2], 1]]})
    with pytest.raises(ValueError, match=r"dataset\.json mixes integers and lists"):
        open_dataset(path)


@pytest.mark.parametrize("labels", [["a.png", "b.png"], [["a.png"]], [[3, "a.png"]], 7], ids=str)
def test_labels_that_are_no_pairs(edm, labels):
    path, _ = edm({"labels": labels})
    with pytest.raises(ValueError, match=r'dataset\.json: "labels" is not a list of pairs like \["IMAGE\.png", 0\]'):
        open_dataset(path)


@pytest.mark.parametrize("text", [b"{", b"\xff\xfe\xfa"])
def test_no_json(edm, text):
    path, _ = edm(text)
    with pytest.raises(ValueError, match=r"dataset\.json is not JSON \("):
        open_dataset(path)


@pytest.mark.parametrize("label", ["cat", -1, 0.5])
def test_labels_that_are_no_integers(edm, label):
    path, _ = edm({"labels": [[NAMES[0], 0], [NAMES[1], label], [NAMES[2], 0]]})
    with pytest.raises(ValueError, match=r"not numbers|is negative|is not an integer"):
        open_dataset(path)


def test_files_outside_are_out_of_reach(tmp_path, edm):
    (tmp_path / "secret.png").write_bytes(b"x")
    path, _ = edm({"labels": [[name, 0] for name in (*NAMES, "../secret.png")]})
    with pytest.raises(ValueError, match=r"names \.\./secret\.png, which is missing"):
        open_dataset(path)
