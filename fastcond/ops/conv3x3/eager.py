"""The short way to the native CPU kernels in eager mode (fastcond/ops/short_way.py)."""

from __future__ import annotations

from fastcond.ops.conv3x3 import cpu
from fastcond.ops.conv3x3.op import conv3x3_native_backward
from fastcond.ops.weighted import eager_call

conv3x3 = eager_call(cpu, conv3x3_native_backward)
