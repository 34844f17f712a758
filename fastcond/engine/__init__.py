"""The sampling engine."""

from fastcond.engine.generate import generate, step_table, to_uint8

__all__ = ["generate", "step_table", "to_uint8"]
