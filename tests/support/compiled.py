"""Compiling what the Triton launchers launch, for GPUs that need not be there, and reading the machine code.

A launcher runs unchanged with CPU tensors; each of its launches is specialised as Triton would and compiled for the architecture
asked for, and then handed to `execute` (the interpreter of PTX) or not run at all.
"""

from __future__ import annotations

import linecache
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

ARCHITECTURES = (80, 90, 100, 120)
# A cache of this process: Triton's own would return code whose line numbers are those of an older source.
_CACHE = tempfile.TemporaryDirectory(prefix="fastcond-triton-")
_LINES_OF_A_LOAD = 9  # a register set to zero a line, eight for 256 bits, and the load
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Launch:
    """One launch: Triton's CompiledKernel, its grid, the arguments that it is passed, in order, and the constants."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    constants: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.kernel.metadata.name)

    @property
    def threads(self) -> int:
        """Threads of a program, over all CTAs of its cluster."""
        return 32 * int(self.kernel.metadata.num_warps) * int(self.kernel.metadata.num_ctas)


class _Driver:
    """What Triton's launch path asks of a driver before it compiles. Each architecture is a device of its own."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_device(self) -> int:
        return self.architecture

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)


@contextmanager
def compiling(architecture: int, execute: Callable[[Launch], None] | None = None) -> Iterator[list[Launch]]:
    """Within, launches of Triton kernels compile for sm_`architecture` and are listed; `execute` is called with each."""
    launches: list[Launch] = []
    launch = JITFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        given = dict(zip(self.arg_names, args, strict=False)) | kwargs
        constants = {self.arg_names[path[0]]: value for path, value in kernel.src.constants.items()}
        arguments = {name: given[name] for name in self.arg_names if name not in constants}
        launches.append(Launch(kernel, tuple(grid), arguments, constants))
        if execute is not None:
            execute(launches[-1])
        return kernel

    before = driver._active
    JITFunction.run = run
    driver.set_active(_Driver(architecture))
    try:
        with triton.knobs.cache.scope():
            triton.knobs.cache.dir = _CACHE.name
            yield launches
    finally:
        JITFunction.run = launch
        driver._active = before


@dataclass(frozen=True)
class Instruction:
    """Its whole name, as "LDG.E.128", and the line of source that it comes from."""

    name: str
    source: str


@dataclass(frozen=True)
class MachineCode:
    """What ptxas made: registers a thread, bytes of local memory a thread, shared bytes a CTA, and the instructions."""

    registers: int
    local: int
    shared: int
    instructions: tuple[Instruction, ...]

    def matching(self, pattern: str) -> Counter[str]:
        """Instructions whose whole name matches `pattern`."""
        return Counter(found.name for found in self.instructions if re.fullmatch(pattern, found.name))

    def accesses(self, kind: str, source: str = "") -> Counter[int]:
        """How many global loads ("LDG") or stores ("STG") of each width in bits come from source lines that hold `source`."""
        widths: Counter[int] = Counter()
        for found in self.instructions:
            if found.name.split(".")[0] == kind and source in found.source:
                parts = found.name.split(".")
                wide = next((int(part) for part in parts if part in ("64", "128", "256")), None)
                narrow = 8 if {"U8", "S8"} & set(parts) else 16 if {"U16", "S16"} & set(parts) else 32
                widths[wide or narrow] += 1
        return widths


def machine_code(launch: Launch) -> MachineCode:
    """Disassemble the cubin of `launch` with the tools that ship with Triton."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(launch.kernel.asm["cubin"])
        usage = _tool("cuobjdump", "-res-usage", str(cubin))
        text = _tool("nvdisasm", "-c", "-g", str(cubin))
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    assert found, f"cuobjdump names no resources: {usage}"
    instructions = tuple(_instructions(text))
    assert instructions, f"no instructions in {text[:200]}"
    return MachineCode(found["REG"], found["STACK"] + found["LOCAL"], launch.kernel.metadata.shared, instructions)


def _instructions(text: str) -> Iterator[Instruction]:
    """From lines as `//## File "...", line 12` and `/*0010*/  @!P0 LDG.E.128 R4, [R2.64] ;`."""
    source = ""
    for line in text.splitlines():
        if place := re.search(r'//## File "([^"]+)", line (\d+)', line):
            source = _line(place[1], int(place[2]))
        elif name := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", line):
            yield Instruction(name[1], source)


def _line(file: str, number: int) -> str:
    """The source line. A load is several lines of inline assembly, which LLVM counts on: its tl.load stands a few lines above."""
    for above in range(_LINES_OF_A_LOAD):
        line = linecache.getline(file, number - above)
        if "tl.load(" in line:
            return line
    return linecache.getline(file, number)


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([str(_TOOLS / name), *arguments], check=True, capture_output=True, text=True).stdout
