"""A folder, or a zip, with one folder a class; what image files become."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from fastcond.data import open_dataset
from fastcond.data.png import check_png


@pytest.fixture
def one_class(tmp_path, save):
    """one_class({"a.png": pixels, ...}): a folder whose only class holds these files."""

    def build(files, **options):
        for name, pixels in files.items():
            save(tmp_path / "set" / "only" / name, pixels, **options)
        return tmp_path / "set"

    return build


def read_png(path):
    return np.asarray(Image.open(path))


def test_classes_and_files_are_sorted_and_deeper_folders_walked(cats_and_dogs):
    dataset = open_dataset(cats_and_dogs)
    assert dataset.class_names == ("cat", "dog")
    assert dataset.labels.tolist() == [0, 0, 1, 1, 1]
    assert dataset.images.shape == (5, 6, 4, 3)  # not square
    for image, name in zip(dataset.images, ("cat/a", "cat/b", "dog/1", "dog/2", "dog/young/3"), strict=True):
        np.testing.assert_array_equal(image, read_png(cats_and_dogs / f"{name}.png"))


def test_files_of_a_class_stay_together_where_paths_would_mix(tmp_path, save):
    for index, name in enumerate(("cat/z.png", "cat-2/a.png", "cat/a.png")):
        save(tmp_path / "set" / name, np.full((2, 2), index, np.uint8))
    dataset = open_dataset(tmp_path / "set")
    assert dataset.class_names == ("cat", "cat-2")
    assert dataset.images[:, 0, 0, 0].tolist() == [2, 0, 1] and dataset.labels.tolist() == [0, 0, 1]


def test_hidden_and_unrelated_files_are_ignored(cats_and_dogs, save):
    (cats_and_dogs / "README.txt").write_text("x")
    (cats_and_dogs / "cat" / "notes.txt").write_text("x")
    (cats_and_dogs / "cat" / ".hidden.png").write_bytes(b"x")
    (cats_and_dogs / ".git").mkdir()
    (cats_and_dogs / "dog" / ".cache").mkdir()
    (cats_and_dogs / "dog" / ".cache" / "x.png").write_bytes(b"x")
    assert len(open_dataset(cats_and_dogs)) == 5


def test_thousands_of_files_keep_their_order(tmp_path, save):
    for index in range(300):  # several tasks of the thread pool
        save(tmp_path / "set" / str(index % 2) / f"{index:04}.png", np.full((2, 3), index % 251, np.uint8))
    dataset = open_dataset(tmp_path / "set")
    expected = [*range(0, 300, 2), *range(1, 300, 2)]
    assert dataset.images[:, 1, 2, 0].tolist() == [index % 251 for index in expected]


def test_a_zip_with_class_folders_equals_the_folder(tmp_path, cats_and_dogs):
    for wrapped in ("", "pets/"):
        with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
            for path in sorted(cats_and_dogs.rglob("*.png"), reverse=True):
                archive.write(path, wrapped + path.relative_to(cats_and_dogs).as_posix())
            archive.writestr("__MACOSX/cat/._a.png", b"x")
        dataset, expected = open_dataset(tmp_path / "pets.zip"), open_dataset(cats_and_dogs)
        np.testing.assert_array_equal(dataset.images, expected.images)
        np.testing.assert_array_equal(dataset.labels, expected.labels)
        assert dataset.class_names == expected.class_names


def test_a_zip_of_one_class_keeps_its_name(tmp_path, cats_and_dogs):
    with zipfile.ZipFile(tmp_path / "cats.zip", "w") as archive:
        archive.write(cats_and_dogs / "cat" / "a.png", "cat/a.png")
    assert open_dataset(tmp_path / "cats.zip").class_names == ("cat",)


def test_jpeg_and_webp_are_read(one_class):
    pixels = np.full((8, 8, 3), (200, 100, 50), np.uint8)
    root = one_class({"a.JPG": pixels, "b.jpeg": pixels, "c.webp": pixels, "d.png": pixels})
    images = open_dataset(root).images
    assert images.shape == (4, 8, 8, 3)
    assert np.abs(images.astype(int) - pixels).max() <= 6


def test_alpha_is_laid_on_white(one_class):
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 3] = (0, 128, 255)
    images = open_dataset(one_class({"a.png": pixels})).images
    assert images[0, 0].tolist() == [[255] * 3, [127] * 3, [0] * 3]


def test_gray_with_alpha_stays_gray(one_class):
    pixels = np.array([[[10, 255], [10, 0]]], np.uint8)
    images = open_dataset(one_class({"a.png": pixels, "b.png": pixels[..., 0]})).images
    assert images[..., 0].tolist() == [[[10, 255]], [[10, 10]]]


def test_one_colour_image_makes_all_rgb(one_class):
    gray = np.array([[0, 77, 255]], np.uint8)
    assert open_dataset(one_class({"a.png": gray})).channels == 1
    images = open_dataset(one_class({"b.png": np.full((1, 3, 3), 9, np.uint8)})).images
    assert images.shape == (2, 1, 3, 3)
    np.testing.assert_array_equal(images[0], gray[..., None].repeat(3, axis=2))


def test_one_bit_images_become_black_and_white(one_class):
    bits = np.array([[True, False], [False, True]])
    images = open_dataset(one_class({"a.png": bits})).images
    np.testing.assert_array_equal(images[0, ..., 0], bits * np.uint8(255))


def test_sixteen_bit_gray_is_scaled(one_class):
    values = np.array([[0, 128, 129, 257, 32896, 65535]], np.uint16)
    images = open_dataset(one_class({"a.png": values})).images
    assert images[0, 0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


def test_a_transparent_gray_of_sixteen_bits_becomes_white(tmp_path):
    (tmp_path / "set" / "only").mkdir(parents=True)
    image = Image.fromarray(np.array([[0, 300, 65535]], np.uint16))
    image.save(tmp_path / "set" / "only" / "a.png", transparency=0)
    assert open_dataset(tmp_path / "set").images.ravel().tolist() == [255, 1, 255]


def test_palettes_with_a_transparent_colour_are_read(tmp_path):
    (tmp_path / "set" / "only").mkdir(parents=True)
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(tmp_path / "set" / "only" / "a.png", transparency=1)
    images = open_dataset(tmp_path / "set").images
    assert images[0, 0].tolist() == [[255, 0, 0], [255, 255, 255], [0, 0, 255]]


@pytest.mark.parametrize("extension", ["png", "jpg", "webp"])
def test_the_exif_orientation_is_applied(one_class, extension):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned right by a quarter
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, 8:] = 255  # the right half is white: upright it is the lower half
    images = open_dataset(one_class({f"a.{extension}": pixels}, exif=exif)).images
    assert images.shape == (1, 16, 8, 3)
    assert images[0, :6].max() < 20 and images[0, 10:].min() > 235


def test_unequal_sizes_name_the_first_two_files(tmp_path, save):
    for name, shape in {"a/1.png": (4, 6), "a/2.png": (4, 6), "b/1.png": (5, 6)}.items():
        save(tmp_path / "set" / name, np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match=r"a/1\.png is 4x6, b/1\.png is 5x6 \(height x width\); use --size"):
        open_dataset(tmp_path / "set")
    assert open_dataset(tmp_path / "set", size=(3, 2)).images.shape == (3, 3, 2, 1)


def test_only_images(tmp_path, save):
    save(tmp_path / "set" / "a.png", np.zeros((2, 2), np.uint8))
    with pytest.raises(ValueError, match="1 images but no class folders; put them in one folder a class"):
        open_dataset(tmp_path / "set")


def test_an_empty_folder(tmp_path):
    with pytest.raises(ValueError, match="neither images nor class folders; put them in one folder a class"):
        open_dataset(tmp_path)


def test_images_beside_class_folders(cats_and_dogs, save):
    save(cats_and_dogs / "loose.png", np.zeros((2, 2), np.uint8))
    with pytest.raises(ValueError, match=r"1 images lie beside the class folders \(the first is loose\.png\)"):
        open_dataset(cats_and_dogs)


def test_an_empty_class_is_named(cats_and_dogs):
    (cats_and_dogs / "emu").mkdir()
    with pytest.raises(ValueError, match="class folder emu holds no PNG, JPEG or WebP image"):
        open_dataset(cats_and_dogs)


@pytest.mark.parametrize("extension", ["png", "jpg", "webp"])
@pytest.mark.parametrize("kept", [0.97, 0.5, 0.1, 0.0])
def test_a_truncated_file_is_named(cats_and_dogs, save, rng, extension, kept):
    path = save(cats_and_dogs / f"dog/broken.{extension}", rng.integers(0, 256, (6, 4, 3), dtype=np.uint8))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ValueError, match=rf"dog/broken\.{extension} is (damaged|not a PNG, JPEG or WebP image)"):
        open_dataset(cats_and_dogs)


# x0, y0, dx, dy of the seven passes of an interlaced PNG.
ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def png(pixels, missing=0, interlaced=False):
    """An RGB PNG by hand, its checksums right, with the last `missing` bytes of its pixel stream left out."""

    def chunk(tag, body):
        return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))

    passes = ADAM7 if interlaced else [(0, 0, 1, 1)]
    rows = [row for x, y, dx, dy in passes for row in pixels[y::dy, x::dx] if len(row)]
    stream = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 2, 0, 0, interlaced)
    body = zlib.compress(stream[: len(stream) - missing])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_missing_rows_are_not_filled_in_silence(tmp_path, rng):
    pixels = rng.integers(0, 256, (6, 4, 3), dtype=np.uint8)
    path = tmp_path / "set" / "only" / "a.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(png(pixels, missing=13))
    Image.open(path).load()  # Pillow takes it
    with pytest.raises(ValueError, match=r"only/a\.png is damaged \(the pixel data is truncated: 65 of 78 bytes\)"):
        open_dataset(tmp_path / "set")


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 3), (5, 9), (8, 8), (9, 9), (17, 3)])
def test_a_png_is_whole_or_refused(tmp_path, rng, height, width, interlaced):
    """To the byte, in the plain order and in Adam7's passes, of which small images lack some."""
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    path = tmp_path / "set" / "only" / "a.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(png(pixels, interlaced=interlaced))
    np.testing.assert_array_equal(open_dataset(tmp_path / "set").images[0], pixels)
    with pytest.raises(ValueError, match=r"^the pixel data is truncated: (\d+) of \d+ bytes$"):
        check_png(png(pixels, missing=1, interlaced=interlaced))


def test_an_altered_byte_is_found(cats_and_dogs):
    path = cats_and_dogs / "cat" / "b.png"
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x10  # of IEND's checksum, which Pillow does not look at
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"cat/b\.png is damaged \(the checksum of chunk IEND is wrong\); replace or"):
        open_dataset(cats_and_dogs)


def test_another_format_under_the_name_of_a_png(cats_and_dogs):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 6)).save(buffer, "GIF")
    (cats_and_dogs / "cat" / "b.png").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match=r"cat/b\.png is not a PNG, JPEG or WebP image; replace or remove it"):
        open_dataset(cats_and_dogs)


def test_a_damaged_zip(tmp_path, cats_and_dogs):
    path = tmp_path / "pets.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(cats_and_dogs / "cat" / "a.png", "cat/a.png")
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 12] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"pets\.zip: cat/a\.png is damaged \(Bad CRC-32.*make the zip again"):
        open_dataset(path)
    path.write_bytes(data[:40])
    with pytest.raises(ValueError, match=r"pets\.zip: is not a zip or is damaged"):
        open_dataset(path)
