"""The folder that `python -m fastcond.sample` fills: samples.npz, single PNGs, and samples.json with what they were drawn with.

Image `position` of a set is image `position % n` of label `labels[position // n]`. The folder grows batch by batch, in its own
thread, and is whole at any moment: killed, it goes on; interrupted, or out of disk, samples.npz holds what was drawn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from fastcond.images import png_bytes, write_file
from fastcond.npz_stream import NpzStream, images_in

MOST_SINGLE_PNGS = 1000  # in one folder; of larger sets none unless asked
FORMAT_VERSION = 1
_PNG_END = b"IEND\xaeB`\x82"
_ROWS_A_PART = 1 << 16


class SampleFolder:
    """Takes the images of a set in order. A context manager: what was added is kept, however the block is left.

    Args:
        wanted: the folder. It is taken if it is new or empty, else `wanted`-2, -3, ...; with `resume`, it is gone on with.
        settings: all that the images depend on, as JSON has it; a set is gone on with only where they are the same.
        labels, n: `n` images of each label. names: of the labels. image_shape: (H, W, C). seed: of the run.
        all_pngs: single PNGs for a set of more than MOST_SINGLE_PNGS too.
    Raises: ValueError for a folder that cannot be used so.
    """

    def __init__(
        self,
        wanted: Path,
        settings: Mapping[str, Any],
        *,
        labels: Sequence[int],
        n: int,
        names: Mapping[int, str],
        image_shape: tuple[int, ...],
        seed: int,
        resume: bool = False,
        all_pngs: bool = False,
    ) -> None:
        if wanted.is_file():
            raise ValueError(f"--out {wanted} is a file; name a folder")
        self._settings = {"format_version": FORMAT_VERSION, **settings}
        self._labels, self._n, self._names, self._seed = labels, n, names, seed
        self.total, self._image_shape = len(labels) * n, image_shape
        self._has_pngs = all_pngs or self.total <= MOST_SINGLE_PNGS
        self.path = wanted if resume else _free(wanted)
        self.begun_with = 0
        if resume and not _is_empty(wanted):
            self._require_same_settings()
            self.begun_with = images_in(self.path / "samples.npz", image_shape)

    def __enter__(self) -> SampleFolder:
        self._is_new = _is_empty(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            if self._is_new:
                write_file(json.dumps(self._settings, indent=2).encode() + b"\n", self.path / "samples.json")
            self._stream = NpzStream(self.path / "samples.npz", self.total, self._image_shape, tail_bytes=24)
        except OSError:
            self._remove_if_new()
            raise
        self._writer = ThreadPoolExecutor(1, "samples")
        self._pending: list[Future[None]] = []
        if self._has_pngs and self.begun_with:
            self._pending.append(self._writer.submit(self._write_missing_pngs))
        return self

    def add(self, images: np.ndarray) -> None:
        """Write the next images, uint8 [B, H, W, C], while the caller draws; waits for those before. Raises OSError of theirs."""
        self._wait()
        self._pending.append(self._writer.submit(self._write, images))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        try:
            self._wait()
        except OSError as late:
            error = error or late
        self._writer.shutdown()
        done = self._stream.done
        if done == 0:
            self._stream.discard()
            self._remove_if_new()
        else:
            try:
                self._stream.finish(self._others())
            except OSError as late:
                self._stream.close()
                error = error or late
        if done and isinstance(error, OSError | KeyboardInterrupt):
            kept = f"{done:,} of {self.total:,} images are kept in {self.path}"
            how = f"go on with the same command, --out {self.path} and --resume"
            if isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt(f"{kept}; {how}") from error
            where = f"{error.filename}: " if error.filename else ""
            raise OSError(f"{where}{error.strerror or error}; {kept}; make room, then {how}") from error
        if error is not None and kind is None:
            raise error

    def read(self, positions: Sequence[int]) -> np.ndarray:
        """Images that were added, uint8 [N, H, W, C]."""
        return self._stream.read(positions)

    def png_path(self, position: int) -> Path:
        """Where an image's own PNG lies: in the folder, or in folders of a label and 1,000 images."""
        label, index = self._labels[position // self._n], position % self._n
        slug = f"{label}-" + re.sub(r"[^\w-]+", "-", self._names[label])
        folder = self.path
        if self.total > MOST_SINGLE_PNGS:
            folder = folder / slug / f"{index // MOST_SINGLE_PNGS * MOST_SINGLE_PNGS:06d}"
        return folder / f"{slug}-{index:05d}.png"

    def _wait(self) -> None:
        while self._pending:
            self._pending.pop(0).result()

    def _write(self, images: np.ndarray) -> None:
        """The array first: PNGs that a kill leaves out are written from it later."""
        first = self._stream.done
        self._stream.append(images)
        if self._has_pngs:
            for position, image in enumerate(images, first):
                self._write_png(image, position)

    def _write_png(self, image: np.ndarray, position: int) -> None:
        path = self.png_path(position)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(png_bytes(image), path)

    def _write_missing_pngs(self) -> None:
        """Of a set that is gone on with. A power failure may have left a file without its content."""
        for position in range(self.begun_with):
            path = self.png_path(position)
            if not path.exists() or not path.read_bytes().endswith(_PNG_END):
                self._write_png(self._stream.read([position])[0], position)

    def _others(self) -> dict[str, tuple[str, tuple[int, ...], Iterator[np.ndarray]]]:
        """samples.npz's other arrays: labels int64 [N] and seeds int64 [N, 2], (seed, index of the image within its label)."""
        done = self._stream.done
        labels = np.asarray(self._labels)

        def parts() -> Iterator[np.ndarray]:
            return (np.arange(first, min(first + _ROWS_A_PART, done)) for first in range(0, done, _ROWS_A_PART))

        each_label = (labels[part // self._n] for part in parts())
        seeds = (np.stack([np.full(len(part), self._seed), part % self._n], axis=1) for part in parts())
        return {"labels": ("<i8", (done,), each_label), "seeds": ("<i8", (done, 2), seeds)}

    def _require_same_settings(self) -> None:
        path = self.path / "samples.json"
        if not path.is_file():
            raise ValueError(f"--resume: {self.path} holds no samples.json, so it is no set to go on with; choose another --out")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ValueError(f"--resume: {path} is damaged; choose another --out")
        wanted = json.loads(json.dumps(self._settings))
        for name in {**wanted, **found}:
            if found.get(name) != wanted.get(name):
                before, now = json.dumps(found.get(name)), json.dumps(wanted.get(name))
                raise ValueError(f"--resume: {self.path} was begun with {name} {before}, not {now}; choose another --out")

    def _remove_if_new(self) -> None:
        """Leave nothing behind of a set of no images."""
        if self._is_new:
            (self.path / "samples.json").unlink(missing_ok=True)
            if not any(self.path.iterdir()):
                self.path.rmdir()


def _free(wanted: Path) -> Path:
    """`wanted`, or `wanted`-2, -3, ... where something lies there already."""
    if not wanted.name or wanted.name == "..":
        wanted = wanted.resolve()
    folder, number = wanted, 1
    while folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder


def _is_empty(folder: Path) -> bool:
    """Whether nothing lies there but what a kill in the first moment leaves."""
    return not folder.exists() or all(entry.name.startswith(".partial-") for entry in folder.iterdir())
