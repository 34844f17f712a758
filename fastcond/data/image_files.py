"""Where image files lie: a folder or a zip, read through one small interface."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Protocol

IMAGE_EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp"})


class ImageFiles(Protocol):
    """A tree of files. Names are relative, with "/" between the parts; hidden files and folders are left out."""

    origin: str  # what error messages call the tree
    names: list[str]  # every file, sorted
    folders: list[str]  # the folders at the top, sorted

    def read(self, name: str) -> bytes: ...


def is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_EXTENSIONS


class FolderFiles:
    """A folder on disk. Links to folders are followed at the top level only, where no loop can arise."""

    def __init__(self, path: Path) -> None:
        self.origin = str(path)
        self._path = path
        entries = [entry for entry in os.scandir(path) if not _is_hidden(entry.name)]
        self.folders = sorted(entry.name for entry in entries if entry.is_dir())
        self.names = [entry.name for entry in entries if not entry.is_dir()]
        for folder in self.folders:
            for parent, inner, files in os.walk(path / folder):
                inner[:] = [name for name in inner if not _is_hidden(name)]
                relative = Path(parent).relative_to(path).as_posix()
                self.names += [f"{relative}/{name}" for name in files if not _is_hidden(name)]
        self.names.sort()

    def read(self, name: str) -> bytes:
        return (self._path / name).read_bytes()


class ZipFiles:
    """A zip, read in place, never unpacked. A single folder around everything else is taken off."""

    def __init__(self, path: Path) -> None:
        self.origin = str(path)
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, EOFError) as error:
            raise ValueError(f"{path}: is not a zip or is damaged ({error}); copy or download it again") from None
        entries = [entry for entry in self._zip.namelist() if not any(map(_is_hidden, entry.split("/")))]
        self._prefix = _wrapping_folder(entries)
        entries = [entry[len(self._prefix) :] for entry in entries]
        self.names = sorted(entry for entry in entries if entry and not entry.endswith("/"))
        self.folders = sorted({entry.split("/")[0] for entry in entries if "/" in entry})

    def read(self, name: str) -> bytes:
        try:
            return self._zip.read(self._prefix + name)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ValueError(f"{self.origin}: {name} is damaged ({error}); make the zip again") from None
        except (RuntimeError, NotImplementedError) as error:  # a password, or a compression that Python lacks
            raise ValueError(f"{self.origin}: {name} cannot be read ({error}); make the zip again") from None


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _wrapping_folder(entries: list[str]) -> str:
    """ "tiles/" where a zip holds "tiles/cat/1.png" or "tiles/dataset.json": zipping a folder wraps it in its name."""
    tops = {entry.split("/")[0] for entry in entries}
    files = [entry for entry in entries if not entry.endswith("/")]
    if len(tops) != 1 or not files:
        return ""
    prefix = tops.pop() + "/"
    wrapped = prefix + "dataset.json" in files or all(entry.count("/") >= 2 for entry in files if is_image(entry))
    return prefix if wrapped else ""
