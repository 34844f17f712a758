"""python -m fastcond.train: train a class-conditional diffusion model on labelled images."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from fastcond.command_line import Parser, choose_device, image_size, importing, number, path, run, seed_number, whole_number, word
from fastcond.config import CONDITIONINGS, LR_SCHEDULES, PRECISIONS, PREDICTIONS, SCHEDULES, VARIANCES, WEIGHTINGS
from fastcond.presets import PRESETS

PROGRAM = "python -m fastcond.train"
with importing(PROGRAM):
    import torch
    from tqdm import tqdm

    from fastcond.data import LabelledImages, open_dataset
    from fastcond.diffusion import TerminalSignalWarning
    from fastcond.engine import generate, release
    from fastcond.images import image_grid, row_name, write_png
    from fastcond.nn import ConditionalUNet
    from fastcond.training import Intervals, Progress, RunDirectory, Trainer
    from fastcond.training.configure import new_config, require_same_kind, resumed_config
    from fastcond.training.distributed import join_process_group

_GRID_COLUMNS, _GRID_ROWS, _GRID_STEPS, _GRID_GUIDANCE = 8, 10, 25, 2.0
_SECONDS_BETWEEN_LINES = 30.0
_KEEP = 3


def build_parser() -> Parser:
    """The flags of the command line."""
    parser = Parser(prog=PROGRAM, description="Train a class-conditional diffusion model on labelled images.")
    toggle = argparse.BooleanOptionalAction
    where = parser.add_argument_group("what and where")
    where.add_argument(
        "--data",
        type=path,
        help="sprites or digits (built in), a folder with one folder a class, IMAGES.npy, .npz, IDX, CIFAR binary, .zip "
        "(default sprites)",
    )
    where.add_argument(
        "--labels", type=path, metavar="FILE", help="labels of IMAGES.npy: integers or one-hot; with label-attention any rows"
    )
    where.add_argument("--size", type=image_size, metavar="S|HxW", help="resize and crop the images to this size")
    where.add_argument("--out", type=path, metavar="DIR", help="folder of the run (default runs/NAME-OF-THE-DATA)")
    where.add_argument("--resume", action="store_true", help="go on with the run in --out; begin it where there is none")
    where.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")
    where.add_argument(
        "--save-every", type=whole_number, metavar="S", help="steps between checkpoints (default every 10 minutes)"
    )
    where.add_argument("--sample-every", type=whole_number, metavar="S", help="steps between sample grids (default a few a run)")
    where.add_argument("--keep", type=whole_number, default=_KEEP, help="checkpoints of this session to keep (default 3)")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--steps", type=whole_number, metavar="N", help="train N steps (default the preset's)")
    budget.add_argument("--minutes", type=number, metavar="M", help="train M minutes; the learning rate follows the clock")
    network = parser.add_argument_group("network and diffusion")
    network.add_argument("--preset", choices=["auto", *PRESETS], help="network size (default auto: by image size and device)")
    network.add_argument(
        "--conditioning",
        type=word,
        choices=CONDITIONINGS,
        help="how labels enter (default the preset's)",
    )
    network.add_argument("--dropout", type=number, help="dropout in the blocks (default the preset's)")
    network.add_argument("--schedule", choices=SCHEDULES, help="noise schedule (default the preset's)")
    network.add_argument("--timesteps", type=whole_number, metavar="T", help="timesteps of the schedule (default 1000)")
    network.add_argument("--prediction", choices=PREDICTIONS, help="what the network predicts (default the preset's)")
    network.add_argument(
        "--variance",
        type=word,
        choices=VARIANCES,
        help="of ddpm's noise: fixed (default) or learned_range, which the network then predicts too",
    )
    network.add_argument(
        "--rescale-betas", action=toggle, help="multiply linear betas by 1000/T, so that any T ends in noise (the default)"
    )
    network.add_argument("--zero-terminal-snr", action=toggle, help="end the schedule in pure noise; needs v or x_0")
    training = parser.add_argument_group("training")
    training.add_argument("--batch-size", type=whole_number, metavar="B", help="images a step (default the preset's)")
    training.add_argument("--accumulate", type=whole_number, metavar="A", help="micro-batches a step (default 1)")
    training.add_argument("--lr", type=number, help="learning rate (default the preset's)")
    training.add_argument("--lr-schedule", choices=LR_SCHEDULES, help="cosine falls to 0 at the end (default the preset's)")
    training.add_argument("--warmup", type=int, metavar="STEPS", help="steps of rising learning rate (default the preset's)")
    training.add_argument("--weight-decay", type=number, help="AdamW's (default 0)")
    training.add_argument("--clip", type=number, help="largest gradient norm (default 1)")
    training.add_argument("--ema", type=number, help="largest decay of the weight average (default 0.9999)")
    training.add_argument("--label-dropout", type=number, help="share of labels hidden, for --cfg in sampling (default 0.1)")
    training.add_argument("--loss", choices=WEIGHTINGS, help="default mse")
    training.add_argument("--balance", action=toggle, help="draw every class equally often")
    training.add_argument("--flip", action=toggle, help="mirror half of the images")
    training.add_argument("--precision", choices=PRECISIONS, help="default bf16 on a GPU that has it, else fp32")
    training.add_argument("--compile", action=toggle, help="torch.compile the network (default on a GPU)")
    training.add_argument("--seed", type=seed_number, help="of weights, batches and noise (default 0)")
    return parser


def main(options: argparse.Namespace) -> int:
    """Open the data, begin or resume the run, train, report."""
    given = vars(options)
    source = options.data or "sprites"
    out = Path(options.out or f"runs/{_name_of(source)}")
    directory = RunDirectory(out)
    device = choose_device(options.device)
    group = join_process_group(device.type)
    if group.world_size > 1 and device.type == "cuda":
        device = torch.device("cuda", group.local_rank)
    resuming = options.resume and directory.exists()
    if resuming:
        stored = directory.read_config()
        config = resumed_config(given, stored, device)
        try:
            data = open_dataset(
                config.data.source,
                labels=config.data.labels,
                size=config.data.size,
                label_rows=config.network.conditioning == "label_attention",
            )
        except FileNotFoundError as error:
            raise FileNotFoundError(f"the run's data was not found; give its new place with --data ({error})") from error
        require_same_kind(data, config, directory.read_class_names())
    else:
        label_rows = options.conditioning == "label_attention"  # which is no preset's
        data = open_dataset(source, labels=options.labels, size=options.size, label_rows=label_rows)
        config = new_config(given, data, device)
    intervals = Intervals(options.save_every, options.sample_every, options.keep)
    trainer = Trainer(config, data, directory, device, group=group, intervals=intervals)
    if resuming and directory.checkpoint_steps():
        trainer.resume()
    group.require_equal([float(resuming), float(trainer.step)], f"{out} is not the same folder for all processes; share it")
    if group.is_main:
        if not resuming:
            directory.create(config, data.class_names)
        elif config != stored:
            directory.update_config(config)
        parameters = sum(p.numel() for p in trainer.model.parameters())
        height, width = data.image_size
        print(
            f"{'resuming' if resuming else 'training'} {out}: {len(data):,} images {height}x{width}x{data.channels}, "
            f"{data.num_classes} classes, {parameters / 1e6:.1f}M parameters, {device}, {config.training.precision}",
            flush=True,
        )
    group.agree(0.0, False)  # nobody goes on before the folder is there
    return _train(trainer, directory, data, _kept_flags(options))


def _kept_flags(options: argparse.Namespace) -> str:
    """What a run does not remember of the flags that were given, for the command that goes on with it."""
    given = {"save-every": options.save_every, "sample-every": options.sample_every}
    given |= {"keep": options.keep if options.keep != _KEEP else None}
    given |= {"device": options.device if options.device != "auto" else None}
    return "".join(f" --{flag} {value}" for flag, value in given.items() if value is not None)


def _name_of(source: str) -> str:
    """What a run on this data is called: the name of the folder, or of the file without its last extension."""
    path = Path(source).resolve()
    return path.name if path.is_dir() or not path.suffix else path.stem


def _train(trainer: Trainer, directory: RunDirectory, data: LabelledImages, flags: str) -> int:
    """Train with a progress report, sample grids and a Ctrl-C that saves."""
    signals: list[int] = []

    def on_signal(number: int, _frame: Any) -> None:
        signals.append(number)
        trainer.stop()
        print("\nstopping after this step, then saving; once more quits without saving", file=sys.stderr, flush=True)
        signal.signal(number, signal.default_int_handler)

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    report = _Report(trainer) if trainer.group.is_main else None
    if report is not None:
        trainer.on_progress = report.progress

        def on_sample(model: ConditionalUNet, step: int) -> None:
            # Without label dropout the null label was never trained, and guidance has nothing to push away from.
            guidance = _GRID_GUIDANCE if trainer.config.training.label_dropout > 0 else 1.0
            _write_samples(model, directory.samples_path / f"{step:08d}.png", data, guidance)

        trainer.on_sample = on_sample
    try:
        finished = trainer.train()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if report is not None:
            report.close()
        trainer.group.close()
    if report is None:
        return 0
    if not finished:
        print(f"stopped and saved at step {trainer.step}; go on with: {directory.resume_command()}{flags}")
        return 128 + signals[0] if signals else 0
    budget = trainer.config.training
    end = f"--steps {budget.steps}" if budget.minutes is None else f"--minutes {budget.minutes:g}"
    print(f"trained to the end of {end}: step {trainer.step}, in {directory.path}; samples in {directory.samples_path}")
    run_path = shlex.quote(str(directory.path))
    print(f"draw from it with: python -m fastcond.sample --run {run_path} --label all --cfg 2.5")
    return 0


class _Report:
    """Progress on stderr: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, trainer: Trainer) -> None:
        self.batch_size = trainer.config.training.batch_size
        self.first: Progress | None = None
        self.last_line = 0.0
        self.bar = tqdm(total=1.0, disable=None, bar_format="{percentage:3.0f}%|{bar}| {desc}", leave=True)

    def progress(self, now: Progress) -> None:
        """Show where the run stands."""
        self.first = self.first or now
        seconds = now.elapsed - self.first.elapsed
        text = f"step {now.step:,}"
        if seconds > 0:
            text += f", {(now.images - self.first.images) / seconds:,.0f} images/s"
        if now.loss is not None:
            text += f", loss {now.loss:.4f}"
        if now.fraction > self.first.fraction:
            left = max(0.0, seconds * (1 - now.fraction) / (now.fraction - self.first.fraction))
            text += f", {tqdm.format_interval(left)} left"
        if not self.bar.disable:
            self.bar.n = min(now.fraction, 1.0)
            self.bar.set_description_str(text, refresh=False)
            self.bar.update(0)
        elif time.monotonic() - self.last_line >= _SECONDS_BETWEEN_LINES or now.fraction >= 1.0:
            print(text, file=sys.stderr, flush=True)
            self.last_line = time.monotonic()

    def close(self) -> None:
        """Finish the bar."""
        self.bar.close()


def _write_samples(model: ConditionalUNet, path: Path, data: LabelledImages, guidance: float) -> None:
    """A grid with one row a label; of many labels the first ones."""
    labels, names = data.shown_labels(_GRID_ROWS)
    rows = range(len(names))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TerminalSignalWarning)  # said when the run began
        images = generate(
            model,
            labels.repeat(_GRID_COLUMNS, axis=0),
            guidance=guidance,
            sampler="ddim",
            steps=min(_GRID_STEPS, model.diffusion.num_timesteps),
            indices=[index for _ in rows for index in range(_GRID_COLUMNS)],
            compile=False,  # which would take longer than the few steps
        )
    release(model)  # the memory is wanted for training
    write_png(image_grid(images, _GRID_COLUMNS, [row_name(row, names[row]) for row in rows]), path)


if __name__ == "__main__":
    sys.exit(run(main, build_parser()))
