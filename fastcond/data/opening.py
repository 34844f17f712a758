"""`open_dataset`: which reader a source belongs to. The only file that knows all formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fastcond.data.arrays import read_npy, read_npz
from fastcond.data.cifar import is_cifar_folder, read_cifar_file, read_cifar_folder, refuse_archive
from fastcond.data.digits import load_digits
from fastcond.data.edm_zip import INDEX, read_edm
from fastcond.data.folder import read_class_folders
from fastcond.data.idx import find_training_images, is_idx, read_idx_pair
from fastcond.data.image_files import FolderFiles, ImageFiles, ZipFiles, is_image
from fastcond.data.labelled_images import LabelledImages, check_distinct, label_images, numbered, shortened
from fastcond.data.resizing import fit_images, parse_size

FORMS = (
    "sprites, digits, a folder with one folder a class, IMAGES.npy with --labels LABELS.npy, .npz, MNIST's IDX files, "
    "CIFAR's binary version, a .zip or folder with dataset.json"
)
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".pkl", ".pickle")


def open_dataset(
    source: str | Path,
    *,
    labels: str | Path | None = None,
    size: int | tuple[int, int] | None = None,
    class_names: Sequence[str] | None = None,
    label_rows: bool = False,
) -> LabelledImages:
    """Open labelled images of any form that is read here.

    Args:
        source: one of
            "sprites", "digits": built in. They win over a folder of that name, unless it is written "./digits" or
                given as a Path;
            a folder (or zip) with one folder a class: PNG, JPEG, WebP; classes sorted by name, deeper folders walked;
            a folder (or zip) with a dataset.json (EDM's);
            IMAGES.npy, uint8 [N, H, W, C], [N, H, W] or [N, C, H, W] (C 1 or 3, W neither), together with `labels`;
            an .npz with `images` and `labels`, or `arr_0` and `arr_1`, and perhaps `class_names`;
            MNIST's IDX file of images, plain or .gz, its labels beside it or in `labels`; or the folder of them;
            CIFAR-10's or CIFAR-100's folder of the binary version, or one .bin file of it.
        labels: file of labels, for .npy (integers [N] or one-hot [N, K] of any dtype) and IDX only.
        size: pixels of a side, or (H, W): images are scaled to cover it and cut to its centre. None: as they are, and
            then all must have one size.
        class_names: names in label order, for a source whose classes are only numbered.
        label_rows: whether [N, K] labels of .npy and .npz may be any finite numbers: soft, several classes at once, or zeros,
            which is no class. Those that are not all one-hot stay float32 [N, K]; a network of "label_attention" takes them.
    Returns: LabelledImages. Image files become grayscale (C = 1) where all of them are, else RGB; alpha is laid on
        white, 16-bit gray scaled to 8 bits, EXIF orientation applied. The order is always the same.
    Raises: FileNotFoundError or ValueError, one line that says what was found and what to do.
    """
    target = parse_size(size)
    dataset = _read(source, None if labels is None else Path(labels).expanduser(), target, label_rows)
    if class_names is not None:
        dataset = _rename(dataset, tuple(class_names), str(source))
    return replace(dataset, images=fit_images(dataset.images, target))


def _read(source: str | Path, labels: Path | None, size: tuple[int, int] | None, label_rows: bool) -> LabelledImages:
    path = Path(source).expanduser()
    built_in = source in ("sprites", "digits")  # false for a Path
    if not built_in and not path.exists():
        raise FileNotFoundError(f"{source}: no such file or folder; data is one of: {FORMS}")
    if not built_in and path.is_dir():
        path = find_training_images(path) or path
    if not built_in and path.is_file():
        if path.suffix.lower() == ".npy":
            return read_npy(path, labels, label_rows)
        if is_idx(path):
            return read_idx_pair(path, labels)
    if labels is not None:
        raise ValueError(f"{source}: has labels of its own; --labels is for IMAGES.npy and IDX files only")
    if source == "sprites":
        return _draw_sprites()
    if source == "digits":
        return load_digits()
    return _read_folder(path, size) if path.is_dir() else _read_file(path, size, label_rows)


def _draw_sprites() -> LabelledImages:
    # Imported when asked for, as the digits are: opening a folder needs no generator.
    from fastcond.data.sprites import CLASS_NAMES, draw_sprites

    images, labels = draw_sprites()
    return label_images("sprites", images, labels, CLASS_NAMES)


def _read_folder(path: Path, size: tuple[int, int] | None) -> LabelledImages:
    if is_cifar_folder(path):
        return read_cifar_folder(path)
    return _read_tree(FolderFiles(path), size)


def _read_file(path: Path, size: tuple[int, int] | None, label_rows: bool) -> LabelledImages:
    name = path.name.lower()
    if name.endswith(_ARCHIVES):
        refuse_archive(path)
    if name.endswith(".zip"):
        return _read_tree(ZipFiles(path), size)
    if name.endswith(".npz"):
        return read_npz(path, label_rows)
    if name.endswith(".bin"):
        return read_cifar_file(path)
    if is_image(name):
        raise ValueError(f"{path}: is a single image; give a folder with one folder a class: CLASS/IMAGE.png")
    raise ValueError(f"{path}: the extension {path.suffix or '(none)'} is not known; data is one of: {FORMS}")


def _read_tree(files: ImageFiles, size: tuple[int, int] | None) -> LabelledImages:
    return read_edm(files, size) if INDEX in files.names else read_class_folders(files, size)


def _rename(dataset: LabelledImages, names: tuple[str, ...], origin: str) -> LabelledImages:
    """Names for numbered classes. Names that a source brings are kept: another order would mislabel in silence."""
    if dataset.class_names != numbered(dataset.num_classes):
        own = shortened(dataset.class_names)
        raise ValueError(f"{origin}: names its classes itself ({own}); class_names are for numbered classes only")
    if len(names) != dataset.num_classes:
        raise ValueError(f"{origin}: {len(names)} class names for {dataset.num_classes} classes; give one a class")
    check_distinct(names, origin)
    return replace(dataset, class_names=names)
