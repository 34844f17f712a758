"""One CTA at a time: registers as one numpy value for each thread, and a scheduler that always runs the lowest instruction.

Threads that take different branches are groups with a program counter each. The group with the lowest counter runs, and
groups that meet at one counter are one again, so threads reconverge at the earliest place where they can. What a barrier
or a shuffle waits for must have come there together.
"""

from __future__ import annotations

import gc
import itertools
from collections import Counter
from collections.abc import Callable

import numpy as np

from tests.support.ptx.errors import Diverged, PtxError, UnknownInstruction, Unwritten
from tests.support.ptx.floats import UNSIGNED
from tests.support.ptx.memory import SHARED_BASE, WARP, Clock, Memory, Space
from tests.support.ptx.parser import Address, Immediate, Instruction, Kernel, Operand

NUMPY = {f"{kind}{bits}": np.dtype(f"{'i' if kind == 's' else 'u'}{bits // 8}") for kind in "usb" for bits in (8, 16, 32, 64)}
NUMPY |= {"f16": np.dtype("u2"), "bf16": np.dtype("u2"), "f32": np.dtype("u4"), "f64": np.dtype("u8"), "pred": np.dtype("?")}
NUMPY |= {"f16x2": np.dtype("u4"), "bf16x2": np.dtype("u4"), "f32x2": np.dtype("u8")}

# What is undefined: a NaN in f16, bf16 and f32.
POISON = 0x7FE57FE57FE57FE5

Read = Callable[[], np.ndarray]
Write = Callable[[np.ndarray], None]
Execute = Callable[[], None]
Builder = Callable[["Decoder"], Execute]
BUILDERS: dict[str, Builder] = {}


def instruction(*names: str) -> Callable[[Builder], Builder]:
    """Register what turns an instruction of one of these opcodes into a function that executes it."""

    def register(builder: Builder) -> Builder:
        BUILDERS.update(dict.fromkeys(names, builder))
        return builder

    return register


class Machine:
    """The state of a run.

    Attributes:
        issued: how often a CTA executed each opcode (one for all of its threads), caching hints left out.
        executed: how many threads executed it, summed.
        memory: the Memory of each pointer argument, by its parameter's name, with bytes_read and bytes_written.
    """

    def __init__(self, kernel: Kernel, num_threads: int, clock: Clock, memory: dict[str, Memory], parameters: bytes) -> None:
        self.kernel, self.num_threads, self.clock, self.memory = kernel, num_threads, clock, memory
        self.parameters = np.frombuffer(parameters, np.uint8)
        self.global_space = Space("global", list(dict.fromkeys(memory.values())))
        self.issued: Counter[str] = Counter()
        self.executed: Counter[str] = Counter()
        self.registers: dict[str, np.ndarray] = {}
        self.partial: dict[str, np.ndarray] = {}
        self.special: dict[str, np.ndarray] = {}
        self.constants: dict[tuple[int, int], np.ndarray] = {}
        self.symbols: dict[str, int] = {}
        self.destinations: set[str] = set()
        self.mask = self.live = np.ones(num_threads, bool)
        self.program = decoded(self)
        self.counted_as = [item.counted_as for item in kernel.instructions]

    # -- a run -------------------------------------------------------------------------------------------------------

    def run_cta(self, cta: tuple[int, int, int], grid: tuple[int, int, int], shared_bytes: int, limit: int) -> None:
        """Execute one CTA from its first instruction until all of its threads have returned."""
        self.clock.start_cta()
        self.registers.clear()
        self.partial.clear()
        self.set_special(cta, grid)
        self.shared_space = self.lay_out_shared(shared_bytes)
        self.live = np.ones(self.num_threads, bool)
        self.waiting: dict[int, np.ndarray] = {}
        self.pc, self.mask = 0, self.live.copy()
        for _ in range(limit):
            if self.waiting:
                self.schedule()
            if not self.mask.any():
                return
            if self.pc >= len(self.program):
                raise PtxError(f"{self.kernel.name}: the end of the instructions without ret")
            self.step(cta)
        raise PtxError(f"{self.kernel.name}: CTA {cta} has not returned after {limit} instructions")

    def step(self, cta: tuple[int, int, int]) -> None:
        item, (predicate, execute) = self.kernel.instructions[self.pc], self.program[self.pc]
        group = self.mask
        self.clock.now += 1
        try:
            if predicate is not None:
                self.mask = group & predicate()
            active = int(np.count_nonzero(self.mask))
            if active:
                self.issued[self.counted_as[self.pc]] += 1
                self.executed[self.counted_as[self.pc]] += active
                self.left = np.zeros_like(group)
                execute()
                # Those who jumped or returned are no longer in this group; the others go on below.
                self.mask = group & ~self.left if self.left.any() else group
            else:
                self.mask = group
        except PtxError as error:
            place = f"{self.kernel.name}, line {item.line}, CTA {cta}: {item.text!r}"
            raise type(error)(f"{place}: {error}") from None
        self.pc += 1

    def schedule(self) -> None:
        """Run the lowest group, joined by what waits at the same place."""
        if self.mask.any():
            self.park(self.pc, self.mask)
        self.pc = min(self.waiting)
        self.mask = self.waiting.pop(self.pc)

    def park(self, pc: int, threads: np.ndarray) -> None:
        self.waiting[pc] = self.waiting[pc] | threads if pc in self.waiting else threads

    def jump(self, target: int) -> None:
        """The active threads go on at `target`."""
        self.left = self.mask
        self.park(target, self.mask)

    def leave(self) -> None:
        """The active threads return."""
        self.left = self.mask
        self.live = self.live & ~self.mask

    def set_special(self, cta: tuple[int, int, int], grid: tuple[int, int, int]) -> None:
        thread = np.arange(self.num_threads, dtype=np.uint32)
        lane, zero = thread % np.uint32(WARP), np.zeros_like(thread)
        self.special = {"%tid.x": thread, "%tid.y": zero, "%tid.z": zero, "%laneid": lane, "%warpid": thread // np.uint32(WARP)}
        for axis, name in enumerate("xyz"):
            self.special[f"%ntid.{name}"] = np.full_like(thread, (self.num_threads, 1, 1)[axis])
            self.special[f"%ctaid.{name}"] = np.full_like(thread, cta[axis])
            self.special[f"%nctaid.{name}"] = np.full_like(thread, grid[axis])

    def lay_out_shared(self, shared_bytes: int) -> Space:
        """Fresh shared memory: first what the kernel declares with a size, then `shared_bytes` for its extern array."""
        memories, base = [], SHARED_BASE
        for name, (size, _) in sorted(self.kernel.shared.items(), key=lambda item: item[1][0] == 0):
            data = np.zeros(size or shared_bytes, np.uint8)
            memories.append(Memory(name, base, data, self.clock, unwritten=True))
            self.symbols[name] = base
            base += -(-max(data.size, 1) // 1024) * 1024 + 1024
        return Space("shared", memories)

    def unwritten(self, index: int) -> np.ndarray:
        """Which bytes of the argument of this index nothing has written: bool [bytes], for a Buffer passed as unwritten."""
        return ~self.memory[self.kernel.parameters[index].name].written

    # -- what instructions need ---------------------------------------------------------------------------------------

    def constant(self, value: int, size: int) -> np.ndarray:
        """The low `size` bytes of `value`, for every thread."""
        key = (value & ((1 << 8 * size) - 1), size)
        if key not in self.constants:
            self.constants[key] = np.full(self.num_threads, key[0], UNSIGNED[size])
        return self.constants[key]

    def read(self, name: str) -> np.ndarray:
        """Raw bits of a register for every thread; an error where an active thread has not written it."""
        values = self.registers.get(name)
        if values is None or (name in self.partial and (self.mask & ~self.partial[name]).any()):
            raise Unwritten(f"register {name} is read before it is written")
        return values

    def write(self, name: str, bits: np.ndarray) -> None:
        """Set a register in the active threads. Arrays are never changed in place: a mov may share them."""
        if self.mask.all():
            self.registers[name] = bits
            self.partial.pop(name, None)
            return
        old = self.registers.get(name)
        if old is None or name in self.partial:
            defined = self.partial.get(name, np.zeros(self.num_threads, bool)) | self.mask
            self.partial[name] = defined
        self.registers[name] = np.where(self.mask, bits, bits.dtype.type(0) if old is None else old)

    def threads(self) -> np.ndarray:
        """The active threads."""
        return np.flatnonzero(self.mask)

    def converged(self, members: np.ndarray, what: str, orders: bool = True) -> None:
        """Every active thread's `members`, a mask of its warp's lanes, must be active here, together.

        `orders`: what the warp did to memory before is ordered before what it does after.
        """
        lanes = np.left_shift(np.uint64(1), np.arange(WARP, dtype=np.uint64))
        active = (self.mask.reshape(-1, WARP) * lanes).sum(axis=1, dtype=np.uint64).astype(np.uint32)
        missing = self.mask & ((members & ~np.repeat(active, WARP)) != 0)
        if missing.any():
            raise Diverged(f"thread {int(np.argmax(missing))}: {what} waits for lanes that are elsewhere")
        if orders:
            self.clock.warp_barrier(self.threads())


def decoded(machine: Machine) -> list[tuple[Read | None, Execute]]:
    """Every instruction of the kernel as a function. Thousands of closures live on: collecting garbage meanwhile is in vain."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        return [Decoder(machine, item).decode() for item in machine.kernel.instructions]
    finally:
        if collecting:
            gc.enable()


class Decoder:
    """One instruction on its way to a function: hands out its modifiers and operands, and refuses what is left over."""

    def __init__(self, machine: Machine, item: Instruction) -> None:
        self.machine, self.item = machine, item
        self.modifiers = item.modifiers

    def decode(self) -> tuple[Read | None, Execute]:
        """(the predicate's value, None where there is none; what executes the instruction)."""
        item = self.item
        predicate = None
        if item.predicate is not None:
            predicate = self.reader(("!" if item.negated else "") + item.predicate, "pred")
        if item.base not in BUILDERS:
            raise self.unknown("opcode")
        execute = BUILDERS[item.base](self)
        if self.modifiers:
            raise self.unknown(f"modifier .{self.modifiers[0]}")
        return predicate, execute

    def unknown(self, what: str) -> UnknownInstruction:
        return UnknownInstruction(f"{self.machine.kernel.name}, line {self.item.line}: {self.item.text!r}: unknown {what}")

    def take(self, *names: str) -> str | None:
        """The first of the modifiers that is one of `names`, removed; None where there is none."""
        found = next((modifier for modifier in self.modifiers if modifier in names), None)
        if found is not None:
            self.modifiers.remove(found)
        return found

    def need(self, *names: str) -> str:
        """Like take, but one of `names` must be there."""
        found = self.take(*names)
        if found is None:
            raise self.unknown(f"form: one of .{' .'.join(names)} is missing")
        return found

    def operands(self, *counts: int) -> tuple[Operand, ...]:
        """All operands, whose number is one of `counts`."""
        if len(self.item.operands) not in counts:
            raise self.unknown(f"form with {len(self.item.operands)} operands")
        return self.item.operands

    def reader(self, operand: Operand, kind: str) -> Read:
        """The operand's value as numbers of NUMPY[kind], [threads]; floats as their bits, predicates as bool."""
        machine, dtype = self.machine, NUMPY[kind]
        if isinstance(operand, Immediate) and kind == "pred":
            constant = np.full(machine.num_threads, operand.value != 0)
            return lambda: constant
        if isinstance(operand, Immediate):
            number = machine.constant(operand.value, dtype.itemsize).view(dtype)
            return lambda: number
        if isinstance(operand, tuple):
            return self.packed_reader(operand, dtype)
        if not isinstance(operand, str):
            raise self.unknown(f"operand {operand}")
        if kind == "pred":
            name = operand.removeprefix("!")
            self.width(name)
            return (lambda: ~machine.read(name)) if operand.startswith("!") else (lambda: machine.read(name))
        if operand in machine.kernel.registers:
            size = self.width(operand) // 8
            if size < dtype.itemsize:
                raise self.unknown(f"form: {operand} has fewer bits than .{kind}")
            if size == dtype.itemsize:
                return lambda: machine.read(operand).view(dtype)
            return lambda: machine.read(operand).astype(UNSIGNED[dtype.itemsize]).view(dtype)
        if operand in machine.kernel.shared:
            return lambda: np.full(machine.num_threads, machine.symbols[operand], dtype)
        if operand.startswith("%"):
            return lambda: self.special(operand).astype(dtype)
        raise self.unknown(f"operand {operand}")

    def special(self, name: str) -> np.ndarray:
        if name not in self.machine.special:
            raise self.unknown(f"register {name}")
        return self.machine.special[name]

    def packed_reader(self, parts: tuple[Operand, ...], dtype: np.dtype) -> Read:
        """{a, b} read as one value, a in the low bits."""
        size = dtype.itemsize // len(parts)
        if size not in UNSIGNED or size * len(parts) != dtype.itemsize:
            raise self.unknown(f"operand of {len(parts)} parts")
        readers = [self.packed_part(part, size) for part in parts]
        return lambda: np.stack([read() for read in readers], axis=1).reshape(-1).view(dtype)

    def packed_part(self, part: Operand, size: int) -> Read:
        """A part that no instruction of the kernel ever sets is one that the compiler does not need: NaN, so that it shows."""
        machine, read = self.machine, self.reader(part, f"b{8 * size}")
        is_set = part not in machine.kernel.registers
        return lambda: read() if is_set or part in machine.destinations else machine.constant(POISON, size)

    def writer(self, operand: Operand) -> Write:
        """A function that sets the operand in the active threads, extending numbers by their sign to a wider register."""
        if isinstance(operand, tuple):
            return self.unpacking_writer(operand)
        if not isinstance(operand, str):
            raise self.unknown(f"destination {operand}")
        if operand == "_":
            return lambda values: None
        machine, bits = self.machine, self.width(operand)
        machine.destinations.add(operand)
        if bits == 1:
            return lambda values: machine.write(operand, values)
        size = bits // 8

        def write(values: np.ndarray) -> None:
            if values.dtype.itemsize != size:
                assert values.dtype.itemsize < size, f"{self.item.text}: {values.dtype} into {operand}"
                values = values.astype(f"{'i' if values.dtype.kind == 'i' else 'u'}{size}")
            machine.write(operand, values.view(UNSIGNED[size]))

        return write

    def unpacking_writer(self, parts: tuple[Operand, ...]) -> Write:
        writers = [self.writer(part) for part in parts]

        def write(values: np.ndarray) -> None:
            pieces = np.ascontiguousarray(values).view(UNSIGNED[values.dtype.itemsize // len(parts)]).reshape(-1, len(parts))
            for index, write_part in enumerate(writers):
                write_part(np.ascontiguousarray(pieces[:, index]))

        return write

    def width(self, register: str) -> int:
        if register not in self.machine.kernel.registers:
            raise self.unknown(f"register {register}")
        return self.machine.kernel.registers[register]

    def address(self, operand: Operand) -> Read:
        """[base + offset] as uint64 [threads]."""
        if not isinstance(operand, Address):
            raise self.unknown(f"address {operand}")
        base = operand.base
        if base in self.machine.kernel.shared:
            bits = 32
        elif base in self.machine.kernel.registers:
            bits = self.width(base)
        else:
            raise self.unknown(f"address {base}")
        read, offset = self.reader(base, f"b{bits}"), UNSIGNED[bits // 8](operand.offset & ((1 << bits) - 1))
        return lambda: (read() + offset).astype(np.uint64)


def every_cta(grid: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """CTA coordinates (x, y, z), x the fastest."""
    return [(x, y, z) for z, y, x in itertools.product(range(grid[2]), range(grid[1]), range(grid[0]))]
