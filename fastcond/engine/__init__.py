"""The sampling engine."""

from fastcond.engine.conditioning_table import ConditioningTable
from fastcond.engine.frozen_unet import FrozenUNet
from fastcond.engine.generate import DEFAULT_BATCH_SIZE, generate, generate_batches, release, step_table, to_uint8

__all__ = [
    "DEFAULT_BATCH_SIZE",
    "ConditioningTable",
    "FrozenUNet",
    "generate",
    "generate_batches",
    "release",
    "step_table",
    "to_uint8",
]
