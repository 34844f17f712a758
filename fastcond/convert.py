"""python -m fastcond.convert runs/sprites sprites-diffusers: a run, or a folder of diffusers, as a folder of diffusers."""

from __future__ import annotations

import argparse
import sys

from fastcond.command_line import Parser, importing, path, run

PROGRAM = "python -m fastcond.convert"


def build_parser() -> Parser:
    """The flags of the command line."""
    parser = Parser(
        prog=PROGRAM,
        description="Write a network as a pipeline folder of diffusers, which diffusers loads and fastcond samples from.",
    )
    parser.add_argument("source", type=path, metavar="FROM", help="a run of fastcond, or a model or pipeline folder of diffusers")
    parser.add_argument("target", type=path, metavar="TO", help="a folder that does not exist yet")
    parser.add_argument("--checkpoint", type=int, metavar="STEP", help="of a run: step of the checkpoint (default the last)")
    parser.add_argument(
        "--scheduler", default="DDPMScheduler", metavar="CLASS", help="of diffusers, to sample with there (default DDPMScheduler)"
    )
    return parser


def main(options: argparse.Namespace) -> int:
    """Load and save."""
    with importing(PROGRAM):
        from fastcond.interop import open_model, save_diffusers
    opened = open_model(options.source, step=options.checkpoint)
    save_diffusers(opened.model, options.target, class_names=opened.class_names, scheduler=options.scheduler)
    print(f"wrote {options.target}; draw from it with: python -m fastcond.sample --run {options.target} --label all")
    return 0


if __name__ == "__main__":
    sys.exit(run(main, build_parser()))
