"""From arrays, or a compiled Triton kernel and tensors, to a run."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from tests.support.ptx import float_instructions, integer_instructions, matrix_instructions, movement_instructions
from tests.support.ptx.machine import Machine, every_cta
from tests.support.ptx.memory import WARP, Buffer, Clock, place
from tests.support.ptx.parser import Kernel, Parameter, parse

INSTRUCTION_SETS = (float_instructions, integer_instructions, matrix_instructions, movement_instructions)
LONGEST_RUN = 1_000_000
Argument = Buffer | np.ndarray | torch.Tensor | int | float | bool | None


def run(
    kernel: Kernel,
    grid: Sequence[int],
    num_threads: int,
    args: Sequence[Argument],
    shared_bytes: int = 0,
    limit: int = LONGEST_RUN,
) -> Machine:
    """Execute every CTA of `grid`, one after another, and return the machine with its counts and memories.

    Args:
        kernel: from parse().
        grid: 1 to 3 numbers of CTAs, x first.   num_threads: a CTA's, a multiple of 32.
        args: one for each parameter: an array (or tensor, or Buffer), which the kernel changes in place, or a number. The
            last ones may be left out, like the scratch pointers that Triton appends: they are null.
        shared_bytes: size of the extern shared array.   limit: instructions a CTA may execute.
    Raises: PtxError for whatever the kernel does wrong, naming the instruction and the thread; ValueError for arguments
        that do not fit.
    """
    if num_threads % WARP or (kernel.num_threads or num_threads) != num_threads:
        raise ValueError(f"{num_threads} threads; {kernel.name} wants {kernel.num_threads or 'a multiple of 32'}")
    if len(args) > len(kernel.parameters):
        raise ValueError(f"{len(args)} arguments for {len(kernel.parameters)} parameters of {kernel.name}")
    by_name = {parameter.name: arg for parameter, arg in zip(kernel.parameters, args, strict=False)}
    buffers = {name: as_buffer(arg) for name, arg in by_name.items() if isinstance(arg, Buffer | np.ndarray | torch.Tensor)}
    clock = Clock(num_threads)
    memory = place(buffers, clock)
    block = bytearray()
    for parameter in kernel.parameters:
        value = memory[parameter.name].base if parameter.name in memory else by_name.get(parameter.name)
        if parameter.is_pointer and isinstance(value, float):
            raise ValueError(f"{value} for the pointer {parameter.name}")
        block += bytes(parameter.offset - len(block)) + pack(parameter, value or 0)
    machine = Machine(kernel, num_threads, clock, memory, bytes(block))
    full_grid = (*grid, 1, 1, 1)[:3]
    with np.errstate(all="ignore"):
        for cta in every_cta(full_grid):
            machine.run_cta(cta, full_grid, shared_bytes, limit)
    return machine


def launch(
    compiled: Any,
    grid: Sequence[int],
    *args: Argument,
    limit: int = LONGEST_RUN,
    edit: Callable[[str], str] | None = None,
) -> Machine:
    """Run what triton.compile returned.

    Args:
        compiled: a CompiledKernel for one CTA a cluster.
        args: for each argument of the kernel that is not constexpr, in order: a tensor, a Buffer, an array or a number.
            A strided view stands for the memory between its first and its last element.
        edit: changes the PTX before it is run, to plant a fault.
    """
    if compiled.metadata.num_ctas != 1:
        raise ValueError(f"{compiled.metadata.num_ctas} CTAs a cluster; only 1 can be run")
    kernel = parse_once(edit(compiled.asm["ptx"]) if edit else compiled.asm["ptx"])
    wanted = [name for name, kind in compiled.src.signature.items() if kind != "constexpr"]
    if len(args) != len(wanted):
        raise ValueError(f"{len(args)} arguments for {', '.join(wanted)}")
    return run(kernel, grid, compiled.metadata.num_warps * WARP, args, compiled.metadata.shared, limit)


@lru_cache(maxsize=64)
def parse_once(text: str) -> Kernel:
    """Many runs of one kernel read its text once."""
    return parse(text)


def as_buffer(argument: Buffer | np.ndarray | torch.Tensor) -> Buffer:
    if isinstance(argument, Buffer):
        return argument
    return Buffer(argument if isinstance(argument, np.ndarray) else memory_of(argument))


def memory_of(tensor: torch.Tensor) -> np.ndarray:
    """The memory from a tensor's first element to its last, as a flat array; bfloat16 as uint16."""
    tensor = tensor.detach()
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    flat = tensor.as_strided((span if tensor.numel() else 0,), (1,))
    return (flat.view(torch.uint16) if tensor.dtype == torch.bfloat16 else flat).numpy()


def pack(parameter: Parameter, value: int | float) -> bytes:
    """A scalar as the bytes of its parameter; a Python float as the float of the parameter's size."""
    size = parameter.size
    if isinstance(value, float) or parameter.kind in ("f32", "f64"):
        return struct.pack({4: "<f", 8: "<d"}[size], value)
    return (int(value) & ((1 << 8 * size) - 1)).to_bytes(size, "little")
