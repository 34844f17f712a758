"""What `python -m fastcond.sample` does once its flags are read: load, draw, write, and say what came out."""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastcond.command_line import choose_device, model_settings
from fastcond.diffusion import SAMPLERS
from fastcond.engine import DEFAULT_BATCH_SIZE, generate_batches, step_table, to_uint8
from fastcond.images import image_grid, row_name, write_gif, write_png
from fastcond.interop.opening import Opened, is_diffusers_folder, open_model
from fastcond.sample_folder import SampleFolder

ALL_NAME, NULL_NAME = "all", "null"
_MOST_COLUMNS, _MOST_ROWS, _MOST_ROWS_A_LABEL = 10, 100, 10
_GIF_FRAMES = 50
_STEPS = 100


def choose_labels(
    text: str, class_names: Sequence[str], has_null_label: bool = True, largest_number: int | None = None
) -> list[int]:
    """The labels that --label asks for, in its order. K stands for "null", where the network has that.

    Args: largest_number: of a network that takes any number up to it for a label; None: it has as many classes as names.
    Raises: ValueError for an index out of range or a name that is unknown, with the list of those that are known.
    """
    known = {name: label for label, name in enumerate(class_names)}
    # A class may have a comma in its name, or a number for a name.
    words = [text] if text in known else [word.strip() for word in text.split(",") if word.strip()]
    most = len(class_names) - 1 if largest_number is None else largest_number
    labels: list[int] = []
    for word in words:
        if word in known:
            labels.append(known[word])
        elif word == ALL_NAME and largest_number is None:
            labels += range(len(class_names))
        elif word == NULL_NAME and has_null_label:
            labels.append(len(class_names))
        elif re.fullmatch(r"\d{1,18}", word) and int(word) <= most:
            labels.append(int(word))
        elif largest_number is not None:
            raise ValueError(
                f"--label {word!r} is no label of this network, which takes whole numbers from 0 to {largest_number}"
            )
        else:
            known_words = f"{ALL_NAME} and {NULL_NAME}" if has_null_label else f"and {ALL_NAME}; it has no null label"
            names = ", ".join(f"{label} {name}" for label, name in enumerate(class_names[:50]))
            more = f" and {len(class_names) - 50} more" if len(class_names) > 50 else ""
            raise ValueError(f"--label {word!r} is no class of this run; it knows {names}{more}, {known_words}")
    if not labels:
        raise ValueError(f"--label {text!r} names no class; give a class name, an index, all or null")
    repeated = {label for label in labels if labels.count(label) > 1}
    if repeated:
        raise ValueError(f"--label names class {min(repeated)} twice; use --n for more images of it")
    return labels


def draw(options: argparse.Namespace) -> int:
    """Draw what the flags ask for, into a folder. Returns the exit code."""
    settings, device = model_settings(options), choose_device(options.device)
    # Of a run of ours, all is known: what is said is of the guide, if that is of diffusers.
    of_guide = (
        options.guide is not None and not is_diffusers_folder(Path(options.run)) and is_diffusers_folder(Path(options.guide))
    )
    loaded = open_model(options.run, step=options.checkpoint, device=device, **({} if of_guide else settings))
    network, chosen = loaded.model.config, options.sampler or loaded.sampler
    guide = _open_guide(options, loaded, device, settings)
    if network.class_embedding == "identity":
        raise ValueError(
            f"the labels of {options.run} are vectors of {network.embedding_dim} numbers (class_embed_type identity), which "
            "--label cannot name; draw with fastcond.generate(model, vectors)"
        )
    largest = network.largest_label if network.class_embedding == "timestep" else None
    labels = choose_labels(options.label, loaded.class_names, network.has_null_label, largest)
    flags = {"variance": ("ddpm", options.variance), "eta": ("ddim", options.eta)}
    for flag, (sampler, value) in flags.items():
        if value is not None and chosen != sampler:
            raise ValueError(f"--{flag} is a setting of {sampler}; leave it out or use --sampler {sampler}")
    given = {flag: value for flag, (_, value) in flags.items() if value is not None}
    batch_size = options.batch_size or DEFAULT_BATCH_SIZE
    # What one generator draws for an image depends on the batches before and on its own.
    noise = {} if options.rng == "philox" else {"rng": options.rng, "batch_size": batch_size}
    corrections = {"guidance_rescale": options.guidance_rescale, "dynamic_threshold": options.dynamic_threshold}
    corrections["cfg_plus_plus"] = options.cfg_plus_plus
    drawn_with = given | ({"precision": options.precision} if options.precision is not None else {})
    steps = options.steps or min(_STEPS, loaded.model.diffusion.num_timesteps)
    table = step_table(loaded.model, partial(SAMPLERS[chosen], **given) if given else chosen, steps)
    uses_null = (options.cfg != 1.0 and guide is None) or len(loaded.class_names) in labels
    if uses_null and network.has_null_label and not loaded.knows_null_label:
        warnings.warn(
            "this run was trained with --label-dropout 0, so it never saw the null label that this draws with", stacklevel=1
        )
    names = dict(enumerate([*loaded.class_names, NULL_NAME])) if largest is None else {label: str(label) for label in labels}
    image_shape = (*network.image_size, network.in_channels)
    layout = Layout(labels, options.n, names)
    each, indices = np.repeat(labels, options.n), np.tile(np.arange(options.n), len(labels))
    generate = partial(
        generate_batches,
        loaded.model,
        guidance=options.cfg,
        sampler=table,
        seed=options.seed,
        batch_size=batch_size,
        rng=options.rng,
        guidance_interval=tuple(options.cfg_interval) if options.cfg_interval else None,
        guidance_rescale=options.guidance_rescale,
        dynamic_threshold=options.dynamic_threshold,
        guide=None if guide is None else guide.model,
        cfg_plus_plus=options.cfg_plus_plus,
        precision=options.precision,
        compile=options.compile,
    )
    folder = SampleFolder(
        Path(options.out),
        {
            "run": str(options.run),
            "step": loaded.step,
            "weights_sha256": loaded.weights_sha256,
            "labels": labels,
            "n": options.n,
            "cfg": options.cfg,
            "cfg_interval": options.cfg_interval,
            # Off, they are left out: a set begun before there were such flags is gone on with.
            **{name: value for name, value in corrections.items() if value},
            **({} if guide is None else {"guide": str(options.guide), "guide_sha256": guide.weights_sha256}),
            **({} if options.guide_checkpoint is None else {"guide_step": options.guide_checkpoint}),
            "sampler": chosen,
            "steps": steps,
            **drawn_with,
            "seed": options.seed,
            **noise,
            **settings,
        },
        labels=labels,
        n=options.n,
        names=names,
        image_shape=image_shape,
        seed=options.seed,
        resume=options.resume,
        all_pngs=options.png,
    )
    frames = Frames(layout, image_shape, table.num_rows if options.gif else 0)
    with _progress(folder.total, folder.begun_with, table.num_rows) as advance:

        def on_step(row: int, first: int, x_0: Tensor) -> None:
            advance(len(x_0))
            frames.record(row, np.arange(first, first + len(x_0)), x_0)

        batches = generate(each, indices=indices, start=folder.begun_with, on_step=on_step)
        with folder:
            for batch in batches:
                folder.add(batch)
    if options.gif and folder.begun_with:
        # Of the images in the picture, those that an earlier process drew: their frames are drawn again.
        again = layout.positions[layout.positions < folder.begun_with]
        if noise:
            generator = torch.Generator().manual_seed(options.seed)
            for positions, skipped in _batches_with(again, batch_size, folder.total):
                part = partial(generate, each[positions], indices=indices[positions], start=skipped, rng=generator)
                _record_again(part, positions, frames)
        else:
            _record_again(partial(generate, each[again], indices=indices[again]), again, frames)
    write_png(layout.picture(folder.read(layout.positions.tolist())), folder.path / "grid.png")
    if options.gif:
        write_gif([layout.picture(frame) for frame in frames.images()], folder.path / "denoising.gif")
    if options.cfg == 1.0 and options.guidance_rescale:
        warnings.warn("--guidance-rescale has no effect with --cfg 1, its default", stacklevel=1)
    shown = ", ".join(names[label] for label in labels[:5]) + (", ..." if len(labels) > 5 else "")
    at_step = "" if options.guide_checkpoint is None else f"step {options.guide_checkpoint} of "
    evaluations = "" if table.num_rows == steps else f" ({table.num_rows} evaluations)"
    how = ", ".join(
        [
            f"{steps} steps{evaluations}",
            f"cfg {options.cfg:g}{'++' if options.cfg_plus_plus else ''}",
            *([] if guide is None else [f"guide {at_step}{options.guide}"]),
            *([f"guidance rescale {options.guidance_rescale:g}"] if options.guidance_rescale else []),
            *([f"dynamic threshold {options.dynamic_threshold:g}"] if options.dynamic_threshold else []),
            *(["rng torch"] if noise else []),
        ]
    )
    print(
        f"drew {options.n} of each: {shown}; from {'' if loaded.step is None else f'step {loaded.step} of '}{options.run} "
        f"with {chosen}, {how}: {folder.path / 'grid.png'}"
    )
    return 0


def _open_guide(options: argparse.Namespace, loaded: Opened, device: torch.device, settings: Mapping[str, Any]) -> Opened | None:
    """The model that --guide names, if any.

    One of diffusers answers to the same labels under the same schedule as a model of diffusers; its files are its own. Beside a
    run of ours, the settings are all of the guide.

    Raises: ValueError for one that would guide nowhere, since its weights are the model's own, or answers to other labels.
    """
    if options.guide is None:
        if options.guide_checkpoint is not None:
            raise ValueError("--guide-checkpoint is of the run that --guide names; give --guide too")
        return None
    if options.cfg == 1.0:
        raise ValueError("--guide has no effect with --cfg 1, its default; give a --cfg such as 2")
    of_diffusers = is_diffusers_folder(Path(options.guide))
    if options.guide_checkpoint is not None and of_diffusers:
        raise ValueError(f"{options.guide} is a folder of diffusers, which has no checkpoints; leave out --guide-checkpoint")
    told: Mapping[str, Any] = {}
    if of_diffusers:
        beside_run = not is_diffusers_folder(Path(options.run))
        same = ("null_label", "timesteps", "prediction")
        told = settings if beside_run else {name: value for name, value in settings.items() if name in same}
    guide = open_model(options.guide, step=options.guide_checkpoint, device=device, **told)
    ours, theirs = loaded.model.state_dict(), guide.model.state_dict()
    if ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours):
        raise ValueError(
            f"the weights of --guide {options.guide} are those of --run {options.run}, so it guides nowhere; give a worse model, "
            "or an earlier checkpoint of the run with --guide-checkpoint"
        )
    # Names that are the numbers are of a source that has none.
    if len(loaded.class_names) == len(guide.class_names) and not (_are_numbers(loaded) or _are_numbers(guide)):
        for label, (own, other) in enumerate(zip(loaded.class_names, guide.class_names, strict=True)):
            if own != other:
                raise ValueError(
                    f"label {label} is {own!r} to the model and {other!r} to the guide; they must have the same classes"
                )
    return guide


def _are_numbers(opened: Opened) -> bool:
    return opened.class_names == tuple(str(label) for label in range(len(opened.class_names)))


def _batches_with(positions: np.ndarray, batch_size: int, total: int) -> Iterator[tuple[np.ndarray, int]]:
    """The batches that hold `positions`, each with those since the batch before, and how many images come before it.

    Those since are there because one generator draws for every batch of a set in turn: their noise is drawn, nothing else.
    """
    done = 0
    for first in np.unique(positions // batch_size) * batch_size:
        end = min(total, int(first) + batch_size)
        yield np.arange(done, end), int(first) - done
        done = end


def _record_again(generate: Callable[..., Iterator[np.ndarray]], positions: np.ndarray, frames: Frames) -> None:
    """Draw images that are there already, for their frames. positions: of those that `generate` is called for."""
    for _ in generate(on_step=lambda row, first, x_0: frames.record(row, positions[first : first + len(x_0)], x_0)):
        pass


class Layout:
    """How a set is shown in one picture: whole rows a label, of many images the first.

    positions: int64, ascending; the images that are shown, `n` of each label being numbered label by label.
    """

    def __init__(self, labels: Sequence[int], n: int, names: Mapping[int, str]) -> None:
        rows = -(-n // _MOST_COLUMNS)
        self._columns = -(-n // rows)
        labels = labels[:_MOST_ROWS]
        rows = min(rows, _MOST_ROWS_A_LABEL, max(1, _MOST_ROWS // len(labels)))
        self._cells, self._num_labels = rows * self._columns, len(labels)
        a_label = np.arange(min(n, self._cells))
        self.positions = (np.arange(len(labels))[:, None] * n + a_label).reshape(-1)
        self._row_names = [row_name(label, names[label]) if row == 0 else "" for label in labels for row in range(rows)]

    def picture(self, images: np.ndarray) -> Image.Image:
        """images: uint8 [len(positions), H, W, C]. Each label's are padded with white to whole rows."""
        per_label = images.reshape(self._num_labels, -1, *images.shape[1:])
        padding = [(0, 0), (0, self._cells - per_label.shape[1]), (0, 0), (0, 0), (0, 0)]
        padded = np.pad(per_label, padding, constant_values=255)
        return image_grid(padded.reshape(-1, *images.shape[1:]), self._columns, self._row_names)


class Frames:
    """The x_0 predictions of the shown images, at up to 50 of the sampler's rows; none where there are no rows."""

    def __init__(self, layout: Layout, image_shape: tuple[int, ...], num_rows: int) -> None:
        self._positions = layout.positions
        shown = np.linspace(0, num_rows - 1, min(_GIF_FRAMES, num_rows)).round() if num_rows else ()
        self._frames = {int(row): np.zeros((len(self._positions), *image_shape), np.uint8) for row in shown}

    def record(self, row: int, positions: np.ndarray, x_0: Tensor) -> None:
        """Keep what a batch looks like after a row. positions: of its images, ascending. x_0: [B, C, H, W]."""
        if row in self._frames:
            _, slots, found = np.intersect1d(self._positions, positions, assume_unique=True, return_indices=True)
            if len(slots):
                self._frames[row][slots] = to_uint8(x_0)[found]

    def images(self) -> list[np.ndarray]:
        """One array a frame, like the shown images."""
        return list(self._frames.values())


@contextmanager
def _progress(total: int, begun_with: int, steps: int) -> Iterator[Callable[[int], None]]:
    """A bar of images, with images a second and the time that is left, on a terminal. Yields what to call at each image step."""
    if not sys.stderr.isatty():
        yield lambda images: None
        return
    from tqdm import tqdm  # here, since most runs of a few images end before it would be loaded

    form = "{desc}: {percentage:3.0f}%|{bar}| {n:,.0f} of {total:,} [{elapsed}, {remaining} left, {rate_noinv_fmt}]"
    with tqdm(total=total, initial=begun_with, unit=" images", desc="sampling", leave=False, bar_format=form) as bar:
        yield lambda images: (bar.update(images / steps), None)[1]
