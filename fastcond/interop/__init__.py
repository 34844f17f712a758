"""Living beside other libraries: their models, made faster."""

from fastcond.interop.accelerate import accelerate

__all__ = ["accelerate"]
