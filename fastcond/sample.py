"""python -m fastcond.sample --label 2 --cfg 2.5: draw images of chosen labels from a trained run."""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from fastcond.command_line import Parser, choose_device, number, path, run, seed_number, whole_number
from fastcond.diffusion import SAMPLERS, StepTable
from fastcond.engine import generate, step_table, to_uint8
from fastcond.images import image_grid, row_name, to_picture, whole_file, write_gif, write_png
from fastcond.training import Run, load_run

ALL_NAME, NULL_NAME = "all", "null"
_MOST_COLUMNS = 10
_GIF_FRAMES = 50
_STEPS = 100


def build_parser() -> Parser:
    """The flags of the command line."""
    parser = Parser(prog="python -m fastcond.sample", description="Draw images of chosen labels from a trained run.")
    parser.add_argument(
        "--label",
        required=True,
        help="class name, index (where no class is named so), 'all', 'null' for no condition, or a comma list of these",
    )
    parser.add_argument("--cfg", type=number, default=1.0, metavar="W", help="guidance w in u + w(c-u); 1 is off (default 1)")
    parser.add_argument(
        "--cfg-interval",
        type=number,
        nargs=2,
        metavar=("START", "STOP"),
        help="guide only in this part of the run, as fractions; 0 is the noisiest step (default 0 1)",
    )
    parser.add_argument(
        "--run", type=path, default="runs/sprites", metavar="DIR", help="the run to sample from (default runs/sprites)"
    )
    parser.add_argument("--checkpoint", type=int, metavar="STEP", help="step of the checkpoint (default the last)")
    parser.add_argument("--n", type=whole_number, default=16, help="images a label (default 16)")
    parser.add_argument("--sampler", default="ddpm", choices=list(SAMPLERS), help="default ddpm")
    parser.add_argument(
        "--steps",
        type=whole_number,
        help="steps of the sampler (default 100, at most the model's timesteps); heun runs the network nearly twice in each",
    )
    parser.add_argument("--variance", choices=["fixed_small", "fixed_large"], help="of ddpm's noise (default fixed_small)")
    parser.add_argument("--eta", type=number, help="noise of ddim, 0 (none, the default) to 1")
    parser.add_argument("--seed", type=seed_number, default=0, help="image i of a label depends on (seed, i) (default 0)")
    parser.add_argument("--batch-size", type=whole_number, help="images at a time; does not change them (default 64)")
    parser.add_argument(
        "--out",
        type=path,
        default="samples",
        metavar="DIR",
        help="new folder for the results, -2 added if taken (default samples)",
    )
    parser.add_argument("--gif", action="store_true", help="write denoising.gif too: the x_0 prediction, step by step")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")
    return parser


def choose_labels(text: str, class_names: Sequence[str]) -> list[int]:
    """The labels that --label asks for, in its order. K stands for "null".

    Raises: ValueError for an index out of range or a name that is unknown, with the list of those that are known.
    """
    known = {name: label for label, name in enumerate(class_names)}
    # A class may have a comma in its name, or a number for a name.
    words = [text] if text in known else [word.strip() for word in text.split(",") if word.strip()]
    labels: list[int] = []
    for word in words:
        if word in known:
            labels.append(known[word])
        elif word == ALL_NAME:
            labels += range(len(class_names))
        elif word == NULL_NAME:
            labels.append(len(class_names))
        elif re.fullmatch(r"-?\d+", word) and 0 <= int(word) < len(class_names):
            labels.append(int(word))
        else:
            names = ", ".join(f"{label} {name}" for label, name in enumerate(class_names[:50]))
            more = f" and {len(class_names) - 50} more" if len(class_names) > 50 else ""
            raise ValueError(f"--label {word!r} is no class of this run; it knows {names}{more}, all and null")
    if not labels:
        raise ValueError(f"--label {text!r} names no class; give a class name, an index, all or null")
    repeated = {label for label in labels if labels.count(label) > 1}
    if repeated:
        raise ValueError(f"--label names class {min(repeated)} twice; use --n for more images of it")
    return labels


@contextmanager
def free_folder(wanted: Path) -> Iterator[Path]:
    """A new folder: `wanted`, or `wanted`-2, -3, ... where something lies there already. Gone again if left empty by an error."""
    if wanted.is_file():
        raise ValueError(f"--out {wanted} is a file; name a folder")
    if not wanted.name or wanted.name == "..":
        wanted = wanted.resolve()
    folder, number = wanted, 1
    while folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    except BaseException:
        if not any(folder.iterdir()):
            folder.rmdir()
        raise


def main(options: argparse.Namespace) -> int:
    """Load, draw, write."""
    loaded = load_run(options.run, step=options.checkpoint, device=choose_device(options.device))
    labels = choose_labels(options.label, loaded.class_names)
    settings = {"variance": ("ddpm", options.variance), "eta": ("ddim", options.eta)}
    for flag, (sampler, value) in settings.items():
        if value is not None and options.sampler != sampler:
            raise ValueError(f"--{flag} is a setting of {sampler}; leave it out or use --sampler {sampler}")
    given = {flag: value for flag, (_, value) in settings.items() if value is not None}
    steps = options.steps or min(_STEPS, loaded.model.diffusion.num_timesteps)
    table = step_table(loaded.model, partial(SAMPLERS[options.sampler], **given), steps)
    uses_null = options.cfg != 1.0 or len(loaded.class_names) in labels
    if uses_null and loaded.config.training.label_dropout == 0:
        warnings.warn(
            "this run was trained with --label-dropout 0, so it never saw the null label that this draws with", stacklevel=1
        )
    with free_folder(Path(options.out)) as folder:
        samples = _draw(loaded, table, labels, options)
        _write(samples, folder, [*loaded.class_names, NULL_NAME])
    names = [*loaded.class_names, NULL_NAME]
    shown = ", ".join(names[label] for label in labels[:5]) + (", ..." if len(labels) > 5 else "")
    evaluations = "" if table.num_rows == steps else f" ({table.num_rows} evaluations)"
    print(
        f"drew {options.n} of each: {shown}; from step {loaded.step} of {options.run} "
        f"with {options.sampler}, {steps} steps{evaluations}, cfg {options.cfg:g}: {folder / 'grid.png'}"
    )
    return 0


@dataclass(frozen=True)
class _Samples:
    """images uint8 [N, H, W, C], `n` of each of `labels`; seeds int64 [N, 2]; frames of the denoising, each like images."""

    images: np.ndarray
    labels: list[int]
    n: int
    seeds: np.ndarray
    frames: list[np.ndarray]


def _draw(loaded: Run, table: StepTable, labels: list[int], options: argparse.Namespace) -> _Samples:
    """Generate, with a progress bar."""
    n, rows = options.n, table.num_rows
    indices = np.tile(np.arange(n), len(labels))
    shown = np.linspace(0, rows - 1, min(_GIF_FRAMES, rows) if options.gif else 0).round()
    frames: dict[int, list[np.ndarray]] = {int(row): [] for row in shown}
    with tqdm(total=len(indices) * rows, unit="image step", desc="sampling", disable=None, leave=False) as bar:

        def on_step(row: int, first: int, x_0: Tensor) -> None:
            bar.update(len(x_0))
            if row in frames:
                frames[row].append(to_uint8(x_0))

        images = generate(
            loaded.model,
            np.repeat(labels, n),
            guidance=options.cfg,
            sampler=table,
            seed=options.seed,
            indices=indices,
            batch_size=options.batch_size,
            guidance_interval=tuple(options.cfg_interval) if options.cfg_interval else None,
            on_step=on_step,
        )
    seeds = np.stack([np.full(len(indices), options.seed), indices], axis=1)
    return _Samples(images, labels, n, seeds, [np.concatenate(parts) for parts in frames.values()])


def _write(samples: _Samples, folder: Path, names: Sequence[str]) -> None:
    """samples.npz, single PNGs, grid.png and, where there are frames, denoising.gif."""
    each = np.repeat(samples.labels, samples.n)
    with whole_file(folder / "samples.npz") as partial_path, partial_path.open("wb") as file:
        np.savez(file, images=samples.images, labels=each, seeds=samples.seeds)
    for image, label, (_, index) in zip(samples.images, each, samples.seeds, strict=True):
        slug = re.sub(r"[^\w-]+", "-", names[label])
        write_png(to_picture(image), folder / f"{label}-{slug}-{index:05d}.png")
    rows_a_label = -(-samples.n // _MOST_COLUMNS)
    columns = -(-samples.n // rows_a_label)
    row_names = [row_name(label, names[label]) if row == 0 else "" for label in samples.labels for row in range(rows_a_label)]

    def grid(images: np.ndarray) -> Image.Image:
        # Each label's images are padded with white to whole rows.
        per_label = images.reshape(len(samples.labels), samples.n, *images.shape[1:])
        padding = [(0, 0), (0, rows_a_label * columns - samples.n), (0, 0), (0, 0), (0, 0)]
        padded = np.pad(per_label, padding, constant_values=255)
        return image_grid(padded.reshape(-1, *images.shape[1:]), columns, row_names)

    write_png(grid(samples.images), folder / "grid.png")
    if samples.frames:
        write_gif([grid(frame) for frame in samples.frames], folder / "denoising.gif")


if __name__ == "__main__":
    sys.exit(run(main, build_parser()))
