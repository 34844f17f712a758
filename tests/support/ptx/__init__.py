"""A small interpreter for the PTX that Triton emits: runs compiled kernels where there is no GPU, and watches them.

    compiled = triton.compile(ASTSource(kernel, signature, constexprs), target=GPUTarget("cuda", 90, 32), options={...})
    machine = ptx.launch(compiled, (blocks,), x, ptx.Buffer(y, unwritten=True), n)
    machine.issued["ld.global.v4.b32"], machine.unwritten(1)

All threads of a CTA are numpy vectors, CTAs run one after another. Found: accesses out of bounds and misaligned ones,
registers and bytes read before they are written, races in shared and global memory, barriers that not everybody reaches.
An instruction that is not known is an error. What a GPU does beyond this is not seen: ptxas may fuse mul.f32 with
add.f32 where neither says .rn, approximate functions differ in their last bits (floats.py), and there is one CTA a cluster.
"""

from __future__ import annotations

from tests.support.ptx.errors import Diverged, Misaligned, OutOfBounds, PtxError, Race, UnknownInstruction, Unwritten
from tests.support.ptx.launch import launch, memory_of, run
from tests.support.ptx.machine import BUILDERS, Machine
from tests.support.ptx.memory import Buffer
from tests.support.ptx.parser import Kernel, parse

__all__ = [
    "BUILDERS",
    "Buffer",
    "Diverged",
    "Kernel",
    "Machine",
    "Misaligned",
    "OutOfBounds",
    "PtxError",
    "Race",
    "UnknownInstruction",
    "Unwritten",
    "launch",
    "memory_of",
    "parse",
    "run",
]
