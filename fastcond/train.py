"""python -m fastcond.train: train a class-conditional diffusion model on labelled images."""

from __future__ import annotations

import argparse
import dataclasses
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from fastcond.command_line import Parser, choose_device, image_size, number, run, seed_number, whole_number
from fastcond.config import (
    CONDITIONINGS,
    LR_SCHEDULES,
    PRECISIONS,
    PREDICTIONS,
    PRESETS,
    SCHEDULES,
    DataConfig,
    DiffusionConfig,
    RunConfig,
    TrainingConfig,
    UNetConfig,
    choose_preset,
)
from fastcond.data import LabelledImages, open_dataset
from fastcond.engine import generate
from fastcond.images import image_grid, write_png
from fastcond.nn import ConditionalUNet
from fastcond.training import Intervals, Progress, RunDirectory, Trainer
from fastcond.training.distributed import join_process_group

_GRID_COLUMNS, _GRID_ROWS, _GRID_STEPS, _GRID_GUIDANCE = 8, 10, 25, 2.0
_SECONDS_BETWEEN_LINES = 30.0

# Flag -> field, by section of the run's config. A flag that is not given is None and leaves the preset's or stored value.
_NETWORK = {"conditioning": "conditioning", "dropout": "dropout"}
_DIFFUSION = {
    "schedule": "schedule",
    "timesteps": "num_timesteps",
    "prediction": "prediction",
    "zero_terminal_snr": "zero_terminal_snr",
}
_TRAINING = {
    "batch_size": "batch_size",
    "accumulate": "accumulation",
    "lr": "learning_rate",
    "lr_schedule": "lr_schedule",
    "warmup": "warmup_steps",
    "weight_decay": "weight_decay",
    "clip": "clip_grad_norm",
    "ema": "ema_decay",
    "label_dropout": "label_dropout",
    "loss": "weighting",
    "balance": "balanced",
    "flip": "flip",
    "precision": "precision",
    "compile": "compile",
    "seed": "seed",
}
_DATA = {"data": "source", "labels": "labels", "size": "size"}


def build_parser() -> Parser:
    """The flags of the command line."""
    parser = Parser(prog="python -m fastcond.train", description="Train a class-conditional diffusion model on labelled images.")
    toggle = argparse.BooleanOptionalAction
    where = parser.add_argument_group("what and where")
    where.add_argument(
        "--data",
        help="sprites or digits (built in), a folder with one folder a class, IMAGES.npy, .npz, IDX, CIFAR binary, .zip "
        "(default sprites)",
    )
    where.add_argument("--labels", metavar="FILE", help="labels of IMAGES.npy: integers or one-hot")
    where.add_argument("--size", type=image_size, metavar="S|HxW", help="resize and crop the images to this size")
    where.add_argument("--out", metavar="DIR", help="folder of the run (default runs/NAME-OF-THE-DATA)")
    where.add_argument("--resume", action="store_true", help="go on with the run in --out; begin it where there is none")
    where.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")
    where.add_argument(
        "--save-every", type=whole_number, metavar="S", help="steps between checkpoints (default every 10 minutes)"
    )
    where.add_argument("--sample-every", type=whole_number, metavar="S", help="steps between sample grids (default a few a run)")
    where.add_argument("--keep", type=whole_number, default=3, help="checkpoints to keep (default 3)")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--steps", type=whole_number, metavar="N", help="train N steps (default the preset's)")
    budget.add_argument("--minutes", type=number, metavar="M", help="train M minutes; the learning rate follows the clock")
    network = parser.add_argument_group("network and diffusion")
    network.add_argument("--preset", choices=["auto", *PRESETS], help="network size (default auto: by image size and device)")
    network.add_argument("--conditioning", choices=CONDITIONINGS, help="how labels enter (default the preset's)")
    network.add_argument("--dropout", type=number, help="dropout in the blocks (default the preset's)")
    network.add_argument("--schedule", choices=SCHEDULES, help="noise schedule (default the preset's)")
    network.add_argument("--timesteps", type=whole_number, metavar="T", help="timesteps of the schedule (default 1000)")
    network.add_argument("--prediction", choices=PREDICTIONS, help="what the network predicts (default the preset's)")
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
    training.add_argument("--loss", choices=["mse", "min_snr"], help="default mse")
    training.add_argument("--balance", action=toggle, help="draw every class equally often")
    training.add_argument("--flip", action=toggle, help="mirror half of the images")
    training.add_argument("--precision", choices=PRECISIONS, help="default bf16 on a GPU that has it, else fp32")
    training.add_argument("--compile", action=toggle, help="torch.compile the network (default on a GPU)")
    training.add_argument("--seed", type=seed_number, help="of weights, batches and noise (default 0)")
    return parser


def new_config(options: argparse.Namespace, data: LabelledImages, device: torch.device) -> RunConfig:
    """The config of a new run: the preset's values, overridden by the flags that were given."""
    name = options.preset or "auto"
    preset = PRESETS[choose_preset(data.image_size, device.type) if name == "auto" else name]
    training = {**preset.training, **_given(options, _TRAINING)}
    on_gpu = device.type == "cuda"
    training.setdefault("precision", "bf16" if on_gpu and torch.cuda.is_bf16_supported() else "fp32")
    training.setdefault("compile", on_gpu)
    if options.minutes is not None or options.steps is not None:
        training |= {"minutes": options.minutes, "steps": options.steps}
    network = {**preset.network, **_given(options, _NETWORK)}
    return RunConfig(
        network=UNetConfig(
            image_size=data.image_size,
            num_classes=data.num_classes,
            in_channels=data.channels,
            out_channels=data.channels,
            **network,
        ),
        diffusion=DiffusionConfig(**{**preset.diffusion, **_given(options, _DIFFUSION)}),
        training=TrainingConfig(**training),
        data=DataConfig(**{"source": "sprites", **_given(options, _DATA)}),
    )


def resumed_config(options: argparse.Namespace, stored: RunConfig) -> RunConfig:
    """The stored config, with the budget that was given, and the place of the data if that was given.

    Raises: ValueError for a flag that says something else than the run was begun with.
    """
    sections = {"network": _NETWORK, "diffusion": _DIFFUSION, "training": _TRAINING, "data": {"size": "size"}}
    for section, flags in sections.items():
        for flag, field in flags.items():
            given, kept = getattr(options, flag), getattr(getattr(stored, section), field)
            if given is not None and given != kept:
                name = flag.replace("_", "-")
                raise ValueError(
                    f"--{name} {given} differs from the run's {kept}; a resumed run keeps its settings: leave it out"
                )
    if options.preset not in (None, "auto"):
        kept_fields = {field: getattr(stored.network, field) for field in _NETWORK.values()}
        wanted = {**PRESETS[options.preset].network, **kept_fields}
        if any(getattr(stored.network, field) != value for field, value in wanted.items()):
            raise ValueError(f"--preset {options.preset} is not the network of this run; a resumed run keeps it: leave it out")
    training = stored.training
    if options.steps is not None or options.minutes is not None:
        training = dataclasses.replace(training, steps=options.steps, minutes=options.minutes)
    data = stored.data
    if options.data is not None:
        data = dataclasses.replace(data, source=options.data, labels=options.labels)
    return dataclasses.replace(stored, training=training, data=data)


def main(options: argparse.Namespace) -> int:
    """Open the data, begin or resume the run, train, report."""
    source = options.data or "sprites"
    out = options.out or f"runs/{Path(source).stem or 'run'}"
    directory = RunDirectory(out)
    device = choose_device(options.device)
    group = join_process_group(device.type)
    if group.world_size > 1 and device.type == "cuda":
        device = torch.device("cuda", group.local_rank)
    resuming = options.resume and directory.exists()
    if resuming:
        stored = directory.read_config()
        config = resumed_config(options, stored)
        data = open_dataset(config.data.source, labels=config.data.labels, size=config.data.size)
        _require_same_kind(data, config, directory.read_class_names())
    else:
        data = open_dataset(source, labels=options.labels, size=options.size)
        config = new_config(options, data, device)
    trainer = Trainer(
        config,
        data,
        directory,
        device,
        group=group,
        intervals=Intervals(options.save_every, options.sample_every, options.keep),
    )
    if resuming and directory.checkpoint_steps():
        trainer.resume()
    if group.is_main:
        if not resuming:
            directory.create(config, data.class_names)
        elif config != stored:
            directory.update_config(config)
        parameters = sum(p.numel() for p in trainer.model.parameters())
        height, width = data.image_size
        print(
            f"{'resuming' if resuming else 'training'} {out}: {len(data):,} images {height}x{width}x{data.channels}, "
            f"{data.num_classes} classes, {parameters / 1e6:.1f}M parameters, {device}, {config.training.precision}"
        )
    group.any(False, device)  # nobody goes on before the folder is there
    return _train(trainer, directory, data)


def _train(trainer: Trainer, directory: RunDirectory, data: LabelledImages) -> int:
    """Train with a progress report, sample grids and a Ctrl-C that saves."""
    signals: list[int] = []

    def on_signal(number: int, _frame: Any) -> None:
        signals.append(number)
        trainer.stop()
        # A second one ends the process at once.
        signal.signal(number, signal.SIG_DFL)

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    report = _Report(trainer) if trainer.group.is_main else None
    if report is not None:
        trainer.on_progress = report.progress

        def on_sample(model: ConditionalUNet, step: int) -> None:
            _write_samples(model, directory.samples_path / f"{step:08d}.png", data.class_names)

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
        print(f"stopped and saved at step {trainer.step}; go on with: {directory.resume_command()}")
        return 128 + signals[0] if signals else 0
    budget = trainer.config.training
    end = f"--steps {budget.steps}" if budget.minutes is None else f"--minutes {budget.minutes:g}"
    print(f"trained to the end of {end}: step {trainer.step}, in {directory.path}; samples in {directory.samples_path}")
    print(f"draw from it with: python -m fastcond.sample --run {directory.path} --label all --cfg 2.5")
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


def _write_samples(model: ConditionalUNet, path: Path, class_names: tuple[str, ...]) -> None:
    """A grid with one row a class; of many classes the first ones."""
    rows = range(min(len(class_names), _GRID_ROWS))
    images = generate(
        model,
        [label for label in rows for _ in range(_GRID_COLUMNS)],
        guidance=_GRID_GUIDANCE,
        sampler="ddim",
        steps=min(_GRID_STEPS, model.diffusion.num_timesteps),
        indices=[index for _ in rows for index in range(_GRID_COLUMNS)],
    )
    write_png(image_grid(images, _GRID_COLUMNS, [class_names[label] for label in rows]), path)


def _require_same_kind(data: LabelledImages, config: RunConfig, class_names: tuple[str, ...]) -> None:
    """Raise ValueError for data that the run's network was not made for."""
    network = config.network
    found = (*data.image_size, data.channels, data.class_names)
    if found != (*network.image_size, network.in_channels, class_names):
        height, width = network.image_size
        raise ValueError(
            f"{config.data.source} has {data.num_classes} classes of {data.image_size[0]}x{data.image_size[1]}x{data.channels} "
            f"images; this run was begun with other data: {len(class_names)} classes ({', '.join(class_names[:5])}...) "
            f"of {height}x{width}x{network.in_channels}"
        )


def _given(options: argparse.Namespace, flags: dict[str, str]) -> dict[str, Any]:
    """The fields whose flags were given."""
    return {field: getattr(options, flag) for flag, field in flags.items() if getattr(options, flag) is not None}


if __name__ == "__main__":
    sys.exit(run(main, build_parser()))
