"""The sampling engine."""

from fastcond.engine.generate import generate, generate_batches, step_table, to_uint8

__all__ = ["generate", "generate_batches", "step_table", "to_uint8"]
