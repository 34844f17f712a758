"""The short way to the native CPU kernels in eager mode (fastcond/ops/short_way.py)."""

from __future__ import annotations

from fastcond.ops.linear import cpu
from fastcond.ops.linear.op import linear_native_backward
from fastcond.ops.weighted import eager_call

linear = eager_call(cpu, linear_native_backward)
