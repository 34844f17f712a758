"""python -m fastcond.convert runs/sprites sprites-diffusers: a run, or a network of others, as a folder of diffusers."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from fastcond.command_line import Parser, add_model_flags, image_size, importing, model_settings, path, run, whole_number

PROGRAM = "python -m fastcond.convert"
_OF_A_FILE = ("qkv_order", "head_dim", "size", "schedule")


def build_parser() -> Parser:
    """The flags of the command line."""
    parser = Parser(
        prog=PROGRAM,
        description="Write a network as a pipeline folder of diffusers, which diffusers loads and fastcond samples from.",
    )
    parser.add_argument(
        "source",
        type=path,
        metavar="FROM",
        help="a run of fastcond, a model or pipeline folder of diffusers, or a checkpoint file of guided-diffusion (.pt)",
    )
    parser.add_argument("target", type=path, metavar="TO", help="a folder that does not exist yet")
    parser.add_argument("--checkpoint", type=int, metavar="STEP", help="of a run: step of the checkpoint (default the last)")
    parser.add_argument(
        "--scheduler",
        metavar="CLASS",
        help="of diffusers, to sample with there (default: what FROM came with; of a run DDPMScheduler)",
    )
    parser.add_argument(
        "--qkv-order",
        choices=["legacy", "new"],
        help="of a .pt file: how its attention is stored, new if made with use_new_attention_order (ADM's 64x64), else legacy",
    )
    parser.add_argument("--head-dim", type=whole_number, help="of a .pt file: channels of an attention head (default 64)")
    parser.add_argument("--size", type=image_size, metavar="HxW", help="of a .pt file: size of its images (default 64x64)")
    parser.add_argument(
        "--schedule", choices=["linear", "cosine"], help="of a .pt file: its noise (default cosine at 64x64, else linear)"
    )
    add_model_flags(parser)
    return parser


def main(options: argparse.Namespace) -> int:
    """Load and save."""
    with importing(PROGRAM):
        from fastcond.interop import load_guided_diffusion, open_model, save_diffusers
    given = {name: getattr(options, name) for name in _OF_A_FILE if getattr(options, name) is not None}
    of_diffusers = model_settings(options)
    if Path(options.source).is_file():
        if options.checkpoint is not None:
            raise ValueError("--checkpoint is of a run; leave it out for a checkpoint file")
        if "size" in given:
            given["image_size"] = given.pop("size")
        if "timesteps" in of_diffusers:
            given["num_timesteps"] = of_diffusers.pop("timesteps")
        if of_diffusers:
            flag = next(iter(of_diffusers)).replace("_", "-")
            raise ValueError(f"--{flag} is of a model of diffusers; {options.source} is a file, so leave it out")
        model, class_names = load_guided_diffusion(options.source, **given), None
    else:
        if given:
            flag = next(iter(given)).replace("_", "-")
            raise ValueError(f"--{flag} is for a checkpoint file of guided-diffusion; {options.source} is none")
        opened = open_model(options.source, step=options.checkpoint, **of_diffusers)
        model, class_names = opened.model, opened.class_names
    save_diffusers(model, options.target, class_names=class_names, scheduler=options.scheduler)
    target, label = shlex.quote(options.target), "0" if model.config.class_embedding == "timestep" else "all"
    print(f"wrote {options.target}; draw from it with: python -m fastcond.sample --run {target} --label {label}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main, build_parser()))
