"""python -m fastcond.sample --label 2 --cfg 2.5: draw images of chosen labels from a trained run."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor
from tqdm import tqdm

from fastcond.command_line import Parser, choose_device, number, run, seed_number, whole_number
from fastcond.diffusion import SAMPLERS
from fastcond.engine import generate, step_table, to_uint8
from fastcond.images import image_grid, to_picture, write_gif, write_png
from fastcond.training import load_run

NULL_NAME = "null"
_MOST_COLUMNS = 10
_GIF_FRAMES = 50


def build_parser() -> Parser:
    """The flags of the command line."""
    parser = Parser(prog="python -m fastcond.sample", description="Draw images of chosen labels from a trained run.")
    parser.add_argument("--label", required=True, help="index, class name, comma list of them, 'all', or 'null' for no condition")
    parser.add_argument("--cfg", type=number, default=1.0, metavar="W", help="guidance w in u + w(c-u); 1 is off (default 1)")
    parser.add_argument(
        "--cfg-interval",
        type=number,
        nargs=2,
        metavar=("START", "STOP"),
        help="guide only in this part of the run, as fractions; 0 is the noisiest step (default 0 1)",
    )
    parser.add_argument("--run", default="runs/sprites", metavar="DIR", help="the run to sample from (default runs/sprites)")
    parser.add_argument("--checkpoint", type=int, metavar="STEP", help="step of the checkpoint (default the last)")
    parser.add_argument("--n", type=whole_number, default=16, help="images a label (default 16)")
    parser.add_argument("--sampler", default="ddpm", choices=list(SAMPLERS), help="default ddpm")
    parser.add_argument("--steps", type=whole_number, default=100, help="steps of the sampler (default 100)")
    parser.add_argument("--variance", choices=["fixed_small", "fixed_large"], help="of ddpm's noise (default fixed_small)")
    parser.add_argument("--eta", type=number, help="noise of ddim, 0 (none, the default) to 1")
    parser.add_argument("--seed", type=seed_number, default=0, help="image i of a label depends on (seed, i) (default 0)")
    parser.add_argument("--batch-size", type=whole_number, help="images at a time; does not change them (default 64)")
    parser.add_argument("--out", default="samples", metavar="DIR", help="folder for the results (default samples)")
    parser.add_argument("--gif", action="store_true", help="write denoising.gif too: the x_0 prediction, step by step")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")
    return parser


def choose_labels(text: str, class_names: Sequence[str]) -> list[int]:
    """The labels that --label asks for, in its order. K stands for "null".

    Raises: ValueError for an index out of range or a name that is unknown, with the list of those that are known.
    """
    if text == "all" and "all" not in class_names:
        return list(range(len(class_names)))
    known = {name: label for label, name in enumerate(class_names)}
    # A class may have a comma in its name, or a number for a name.
    words = [text] if text in known else [word.strip() for word in text.split(",")]
    labels = []
    for word in words:
        if word in known:
            labels.append(known[word])
        elif word == NULL_NAME:
            labels.append(len(class_names))
        elif re.fullmatch(r"-?\d+", word) and 0 <= int(word) < len(class_names):
            labels.append(int(word))
        else:
            names = ", ".join(f"{label} {name}" for label, name in enumerate(class_names[:50]))
            more = f" and {len(class_names) - 50} more" if len(class_names) > 50 else ""
            raise ValueError(f"--label {word!r} is no class of this run; it knows {names}{more}, all and null")
    repeated = {label for label in labels if labels.count(label) > 1}
    if repeated:
        raise ValueError(f"--label names class {repeated.pop()} twice; use --n for more images of it")
    return labels


def free_folder(wanted: Path) -> Path:
    """Make and return `wanted`, or `wanted`-2, -3, ... where samples are there already: nothing is overwritten."""
    folder, number = wanted, 1
    while (folder / "samples.npz").exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def main(options: argparse.Namespace) -> int:
    """Load, draw, write."""
    loaded = load_run(options.run, step=options.checkpoint, device=choose_device(options.device))
    labels = choose_labels(options.label, loaded.class_names)
    names = [*loaded.class_names, NULL_NAME]
    settings = {"variance": ("ddpm", options.variance), "eta": ("ddim", options.eta)}
    for flag, (sampler, value) in settings.items():
        if value is not None and options.sampler != sampler:
            raise ValueError(f"--{flag} is a setting of {sampler}; leave it out or use --sampler {sampler}")
    given = {flag: value for flag, (_, value) in settings.items() if value is not None}
    table = step_table(loaded.model, partial(SAMPLERS[options.sampler], **given), options.steps)
    n = options.n
    all_labels = np.repeat(labels, n)
    indices = np.tile(np.arange(n), len(labels))

    frame_rows = set(np.unique(np.linspace(0, table.num_rows - 1, min(_GIF_FRAMES, table.num_rows)).round().astype(int)))
    frames: dict[int, list[np.ndarray]] = {row: [] for row in sorted(frame_rows)} if options.gif else {}
    with tqdm(total=len(all_labels) * table.num_rows, unit="step", desc="sampling", disable=None, leave=False) as bar:

        def on_step(row: int, first: int, x_0: Tensor) -> None:
            bar.update(len(x_0))
            if row in frames:
                frames[row].append(to_uint8(x_0))

        images = generate(
            loaded.model,
            all_labels,
            guidance=options.cfg,
            sampler=table,
            seed=options.seed,
            indices=indices,
            batch_size=options.batch_size,
            guidance_interval=tuple(options.cfg_interval) if options.cfg_interval else None,
            on_step=on_step,
        )

    folder = free_folder(Path(options.out))
    seeds = np.stack([np.full(len(indices), options.seed), indices], axis=1)
    np.savez(folder / "samples.npz", images=images, labels=all_labels, seeds=seeds)
    for image, label, index in zip(images, all_labels, indices, strict=True):
        slug = re.sub(r"[^\w-]+", "-", names[label])
        write_png(to_picture(image), folder / f"{label}-{slug}-{index:05d}.png")
    columns = min(n, _MOST_COLUMNS)
    rows_a_label = -(-n // columns)
    row_names = [names[label] if row == 0 else "" for label in labels for row in range(rows_a_label)]

    def grid(flat: np.ndarray) -> np.ndarray:
        """Pad each label's images with white to whole rows."""
        per_label = flat.reshape(len(labels), n, *flat.shape[1:])
        padding = [(0, 0), (0, rows_a_label * columns - n), (0, 0), (0, 0), (0, 0)]
        return np.pad(per_label, padding, constant_values=255).reshape(-1, *flat.shape[1:])

    write_png(image_grid(grid(images), columns, row_names), folder / "grid.png")
    if options.gif:
        pictures = [image_grid(grid(np.concatenate(parts)), columns, row_names) for parts in frames.values()]
        write_gif(pictures, folder / "denoising.gif")
    print(
        f"drew {len(images)} images of {len(labels)} labels from step {loaded.step} of {options.run} "
        f"with {options.sampler}, {table.num_rows} steps, cfg {options.cfg:g}: {folder / 'grid.png'}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run(main, build_parser()))
