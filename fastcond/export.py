"""python -m fastcond.export runs/sprites step.pt2: network and sampler as a program that runs without fastcond."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fastcond.command_line import Parser, add_model_flags, importing, model_settings, path, run, whole_number
from fastcond.config import SAMPLER_NAMES

PROGRAM = "python -m fastcond.export"
_STEPS = 100


def build_parser() -> Parser:
    """The flags of the command line."""
    parser = Parser(
        prog=PROGRAM,
        description="Write network and sampler as one program of PyTorch's (.pt2) or ONNX's (.onnx) own operations, which maps "
        "x_t at a row of the sampler to x_t at the next, and check it against the network.",
    )
    parser.add_argument("source", type=path, metavar="FROM", help="a run of fastcond, or a model or pipeline folder of diffusers")
    parser.add_argument("target", type=path, metavar="OUT", help="a file that does not exist yet, NAME.pt2 or NAME.onnx")
    parser.add_argument("--checkpoint", type=int, metavar="STEP", help="of a run: step of the checkpoint (default the last)")
    parser.add_argument("--sampler", choices=(*SAMPLER_NAMES, "scheduler"), help="as python -m fastcond.sample's")
    parser.add_argument("--steps", type=whole_number, help="of the sampler (default 100, at most the model's timesteps)")
    parser.add_argument("--batch-size", type=whole_number, metavar="B", help="images a call (default any number)")
    parser.add_argument("--no-cfg", action="store_true", help="without guidance, at half the cost (default with, where possible)")
    add_model_flags(parser)
    return parser


def main(options: argparse.Namespace) -> int:
    """Load, export, check."""
    with importing(PROGRAM):
        from fastcond.engine import step_table
        from fastcond.interop import open_model
        from fastcond.interop.exporting import check_path, export_step
    check_path(Path(options.target))
    opened = open_model(options.source, step=options.checkpoint, **model_settings(options))
    sampler = options.sampler or opened.sampler
    table = step_table(opened.model, sampler, options.steps or min(_STEPS, opened.model.diffusion.num_timesteps))
    written = export_step(
        opened.model,
        table,
        options.target,
        class_names=opened.class_names,
        sampler=sampler,
        batch_size=options.batch_size,
        guided=False if options.no_cfg else None,
    )
    if written.checked:
        print(f"checked: differs from the network by {written.error:.2g} of what rounding may make")
    else:
        print("not checked: onnxruntime is not installed (pip install 'fastcond[export]')")
    print(f"wrote {written.path}: ({', '.join(written.inputs)}) -> (x_next, x_0), {table.num_rows} rows of {sampler}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main, build_parser()))
