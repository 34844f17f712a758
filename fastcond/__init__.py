"""fastcond: train and sample class-conditional diffusion models: a label in, images out."""

from fastcond.config import DiffusionConfig, UNetConfig
from fastcond.data import LabelledImages, open_dataset
from fastcond.diffusion import NoiseSchedule, StepTable, ddim, ddpm, dpmpp2m, heun
from fastcond.engine import generate
from fastcond.interop import accelerate
from fastcond.nn import ConditionalUNet
from fastcond.training import Run, load_run

__version__ = "0.1.0"

__all__ = [
    "ConditionalUNet",
    "DiffusionConfig",
    "LabelledImages",
    "NoiseSchedule",
    "Run",
    "StepTable",
    "UNetConfig",
    "accelerate",
    "ddim",
    "ddpm",
    "dpmpp2m",
    "generate",
    "heun",
    "load_run",
    "open_dataset",
]
