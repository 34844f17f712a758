"""python -m fastcond.sample --label 2 --cfg 2.5: draw images of chosen labels from a trained run."""

from __future__ import annotations

import argparse
import sys

from fastcond.command_line import Parser, add_model_flags, importing, number, path, run, seed_number, whole_number, word
from fastcond.config import PRECISIONS, SAMPLER_NAMES

PROGRAM = "python -m fastcond.sample"


def build_parser() -> Parser:
    """The flags of the command line."""
    parser = Parser(prog=PROGRAM, description="Draw images of chosen labels from a trained run.")
    parser.add_argument(
        "--label",
        required=True,
        help="class name, index (where no class is named so), 'all', 'null' for no condition, or a comma list of these",
    )
    parser.add_argument("--cfg", type=number, default=1.0, metavar="W", help="guidance w in u + w(c-u); 1 is off (default 1)")
    parser.add_argument(
        "--cfg-interval",
        "--guidance-interval",
        type=number,
        nargs=2,
        metavar=("START", "STOP"),
        help="guide only in this part of the run, as fractions; 0 is the noisiest step (default 0 1)",
    )
    parser.add_argument(
        "--guidance-rescale",
        type=number,
        default=0.0,
        metavar="PHI",
        help="take back the contrast that guidance adds, 0 (none, the default) to 1; 0.7 is usual; no effect with --cfg 1",
    )
    parser.add_argument(
        "--dynamic-threshold",
        type=number,
        metavar="P",
        help="keep strong guidance from saturating: clamp x_0 to this percentile of its size and divide by it; above 0 to 1, "
        "such as 0.995 (default the sampler's clamp to [-1, 1])",
    )
    parser.add_argument(
        "--guide",
        type=path,
        metavar="DIR",
        help="a run, or folder of diffusers, of a worse model of the same labels, in the place of the null label (autoguidance)",
    )
    parser.add_argument(
        "--guide-checkpoint",
        type=int,
        metavar="STEP",
        help="step of the guide's checkpoint, such as an early one of the same run (default the last)",
    )
    parser.add_argument(
        "--cfg-plus-plus", action="store_true", help="with ddim: noise the unguided prediction again; --cfg then lies in 0 to 1"
    )
    parser.add_argument(
        "--run",
        type=path,
        default="runs/sprites",
        metavar="DIR",
        help="the run, or folder of diffusers, to sample from (default runs/sprites)",
    )
    parser.add_argument("--checkpoint", type=int, metavar="STEP", help="step of the checkpoint (default the last)")
    parser.add_argument("--n", type=whole_number, default=16, help="images a label (default 16)")
    parser.add_argument(
        "--sampler",
        choices=(*SAMPLER_NAMES, "scheduler"),
        help="default ddpm; of a folder of diffusers the scheduler that came with it, which `scheduler` names",
    )
    parser.add_argument(
        "--steps",
        type=whole_number,
        help="steps of the sampler (default 100, at most the model's timesteps); heun runs the network nearly twice in each",
    )
    parser.add_argument(
        "--variance",
        type=word,
        choices=["fixed_small", "fixed_large", "learned_range"],
        help="of ddpm's noise (default what the model predicts, else fixed_small)",
    )
    parser.add_argument("--eta", type=number, help="noise of ddim, 0 (none, the default) to 1")
    parser.add_argument(
        "--seed",
        type=seed_number,
        default=0,
        help="image i of a label depends on (seed, i) alone, except with --rng torch (default 0)",
    )
    parser.add_argument(
        "--rng",
        choices=["philox", "torch"],
        default="philox",
        help="whose noise: philox (the default), or torch, to compare with a pipeline of diffusers: drawn as it draws from "
        "torch.Generator().manual_seed(SEED), label by label and batch by batch, so that an image then depends on the order of "
        "--label, on --n and on --batch-size too",
    )
    parser.add_argument(
        "--batch-size", type=whole_number, help="images at a time; does not change them, except with --rng torch (default 64)"
    )
    parser.add_argument(
        "--out",
        type=path,
        default="samples",
        metavar="DIR",
        help="new folder for the results, -2 added if taken, unless --resume (default samples)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the set in --out, the other flags as before; begin it where there is none",
    )
    parser.add_argument(
        "--png", action="store_true", help="single PNGs for more than 1,000 images too, in folders of a label and 1,000"
    )
    parser.add_argument("--gif", action="store_true", help="write denoising.gif too: the x_0 prediction, step by step")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="of the network; default bf16 on a GPU that has it, else fp32, the only one on a CPU",
    )
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="torch.compile the network, before the first image (default on a GPU)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")
    add_model_flags(parser)
    return parser


def main(options: argparse.Namespace) -> int:
    """Load, draw, write."""
    # Only now: --help and a wrong flag do not wait for PyTorch.
    with importing(PROGRAM):
        from fastcond.drawing import draw
    return draw(options)


if __name__ == "__main__":
    sys.exit(run(main, build_parser()))
