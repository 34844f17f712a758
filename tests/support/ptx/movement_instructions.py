"""Moves, loads, stores, shuffles, votes, barriers and branches: everything that is not arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce

import numpy as np

from tests.support.ptx.errors import Diverged
from tests.support.ptx.floats import UNSIGNED, extreme
from tests.support.ptx.machine import NUMPY, POISON, Decoder, Execute, Read, instruction
from tests.support.ptx.memory import WARP
from tests.support.ptx.parser import HINT, Address, Immediate

U32 = np.uint32
STATE_SPACES = ("global", "shared", "shared::cta")


# -- registers -----------------------------------------------------------------------------------------------------------


@instruction("mov")
def build_move(decoder: Decoder) -> Execute:
    kind = decoder.need(*NUMPY)
    target, source = decoder.operands(2)
    read, write = decoder.reader(source, kind), decoder.writer(target)
    return lambda: write(read())


@instruction("implicit_def")
def build_implicit_definition(decoder: Decoder) -> Execute:
    """The compiler's remark that a register has any value it likes."""
    (target,) = decoder.operands(1)
    bits = decoder.width(str(target))
    dtype = np.dtype(bool) if bits == 1 else np.dtype(UNSIGNED[bits // 8])
    poison = np.full(decoder.machine.num_threads, POISON, np.uint64).astype(dtype)
    write = decoder.writer(target)
    return lambda: write(poison)


@instruction("cvta")
def build_convert_address(decoder: Decoder) -> Execute:
    """Global addresses are generic addresses here; shared ones have no generic form."""
    decoder.take("to")
    decoder.need("global")
    kind = decoder.need("u64")
    target, source = decoder.operands(2)
    read, write = decoder.reader(source, kind), decoder.writer(target)
    return lambda: write(read())


@instruction("createpolicy")
def build_policy(decoder: Decoder) -> Execute:
    """A caching policy: no value depends on it."""
    decoder.modifiers.clear()
    target = decoder.operands(2, 3)[0]
    policy, write = np.full(decoder.machine.num_threads, POISON, np.uint64), decoder.writer(target)
    return lambda: write(policy)


# -- memory --------------------------------------------------------------------------------------------------------------


def access_form(decoder: Decoder) -> tuple[str, str, int, int]:
    """(state space, element type, elements, bytes in all) of a load or store."""
    decoder.modifiers = [modifier for modifier in decoder.modifiers if not HINT.match(modifier)]
    decoder.take("volatile")
    space = decoder.need(*STATE_SPACES, "param").split("::")[0]
    elements = int((decoder.take("v2", "v4", "v8") or "v1")[1:])
    kind = decoder.need(*(kind for kind in NUMPY if kind != "pred" and not kind.endswith("x2")))
    return space, kind, elements, elements * NUMPY[kind].itemsize


@instruction("ld")
def build_load(decoder: Decoder) -> Execute:
    space, kind, elements, width = access_form(decoder)
    target, source = decoder.operands(2, 3)[:2]
    targets = target if isinstance(target, tuple) else (target,)
    if len(targets) != elements:
        raise decoder.unknown(f"form: {len(targets)} destinations for {elements} elements")
    writers = [decoder.writer(operand) for operand in targets]
    machine = decoder.machine

    def scatter(data: np.ndarray) -> None:
        columns = np.ascontiguousarray(data).view(NUMPY[kind])
        for index, write in enumerate(writers):
            write(np.ascontiguousarray(columns[:, index]))

    if space == "param":
        parameter = parameter_bytes(decoder, source, width)
        return lambda: scatter(np.tile(parameter, (machine.num_threads, 1)))
    address = decoder.address(source)

    def execute() -> None:
        threads, data = machine.threads(), np.zeros((machine.num_threads, width), np.uint8)
        where = address()[threads]
        place = machine.global_space if space == "global" else machine.shared_space
        for memory, chosen in place.split(where, width, threads):
            data[threads[chosen]] = memory.load(where[chosen], width, threads[chosen])
        scatter(data)

    return execute


def parameter_bytes(decoder: Decoder, source: object, width: int) -> np.ndarray:
    parameters = {parameter.name: parameter for parameter in decoder.machine.kernel.parameters}
    if not isinstance(source, Address) or source.base not in parameters:
        raise decoder.unknown(f"parameter {source}")
    start = parameters[source.base].offset + source.offset
    if source.offset < 0 or source.offset + width > parameters[source.base].size:
        raise decoder.unknown(f"access: {width} bytes of {source.base} from {source.offset}")
    return decoder.machine.parameters[start : start + width]


@instruction("st")
def build_store(decoder: Decoder) -> Execute:
    space, kind, elements, width = access_form(decoder)
    if space == "param":
        raise decoder.unknown("store to a parameter")
    target, source = decoder.operands(2, 3)[:2]
    sources = source if isinstance(source, tuple) else (source,)
    if len(sources) != elements:
        raise decoder.unknown(f"form: {len(sources)} values for {elements} elements")
    address, readers, machine = decoder.address(target), [decoder.reader(operand, kind) for operand in sources], decoder.machine

    def execute() -> None:
        threads = machine.threads()
        where = address()[threads]
        data = np.stack([read()[threads] for read in readers], axis=1).view(np.uint8).reshape(-1, width)
        place = machine.global_space if space == "global" else machine.shared_space
        for memory, chosen in place.split(where, width, threads):
            memory.store(where[chosen], width, threads[chosen], data[chosen])

    return execute


# -- lanes of a warp -----------------------------------------------------------------------------------------------------


def from_lane(decoder: Decoder, values: np.ndarray, lane: np.ndarray) -> np.ndarray:
    """The value of `lane` of each thread's own warp; an error where an active thread asks for one that is not active."""
    machine = decoder.machine
    source = np.arange(machine.num_threads) // WARP * WARP + lane.astype(np.int64)
    absent = machine.mask & ~machine.mask[source]
    if absent.any():
        thread = int(np.argmax(absent))
        raise Diverged(f"thread {thread}: takes the value of thread {source[thread]}, which is not active")
    return values[source]


@instruction("shfl")
def build_shuffle(decoder: Decoder) -> Execute:
    decoder.need("sync")
    mode = decoder.need("bfly", "idx", "up", "down")
    decoder.need("b32")
    targets, *sources = decoder.operands(5)
    target, _, valid = str(targets).partition("|")
    write, write_valid = decoder.writer(target), decoder.writer(valid) if valid else None
    value, amount, clamp, members = (decoder.reader(operand, "b32") for operand in sources)
    machine, own = decoder.machine, np.arange(decoder.machine.num_threads, dtype=np.int64) % WARP

    def execute() -> None:
        machine.converged(members(), "the shuffle")
        by, bounds = (amount() & U32(31)).astype(np.int64), clamp().astype(np.int64)
        limit, segment = bounds & 31, bounds >> 8 & 31
        first, last = own & segment, (own & segment) | (limit & ~segment)
        lane = {"up": own - by, "down": own + by, "bfly": own ^ by, "idx": first | (by & ~segment)}[mode]
        inside = lane >= last if mode == "up" else lane <= last
        write(from_lane(decoder, value(), np.where(inside, lane, own)))
        if write_valid is not None:
            write_valid(inside)

    return execute


def over_warps(read: Read, decoder: Decoder) -> tuple[np.ndarray, np.ndarray]:
    """(values, active), each [warps, 32]."""
    return read().reshape(-1, WARP), decoder.machine.mask.reshape(-1, WARP)


@instruction("vote")
def build_vote(decoder: Decoder) -> Execute:
    decoder.need("sync")
    mode = decoder.need("ballot", "any", "all", "uni")
    decoder.need("b32" if mode == "ballot" else "pred")
    target, source, members_operand = decoder.operands(3)
    write, read, members = decoder.writer(target), decoder.reader(source, "pred"), decoder.reader(members_operand, "b32")

    def execute() -> None:
        decoder.machine.converged(members(), "the vote")
        value, active = over_warps(read, decoder)
        yes = value & active
        if mode == "ballot":
            result = (yes << np.arange(WARP, dtype=np.uint64)).sum(axis=1, dtype=np.uint64).astype(U32)
        elif mode == "any":
            result = yes.any(axis=1)
        else:
            result = (value | ~active).all(axis=1)
            result = result | ~yes.any(axis=1) if mode == "uni" else result
        write(np.repeat(result, WARP))

    return execute


@instruction("redux")
def build_reduce(decoder: Decoder) -> Execute:
    """Integers by any of six operations; since sm_100 also the least and the greatest float."""
    decoder.need("sync")
    kind, name = decoder.need("u32", "s32", "b32", "f32"), decoder.need("add", "min", "max", "and", "or", "xor")
    target, source, members_operand = decoder.operands(3)
    write, read, members = decoder.writer(target), decoder.reader(source, kind), decoder.reader(members_operand, "b32")
    operation: Callable[[np.ndarray, np.ndarray], np.ndarray]
    if kind == "f32":
        operation = partial(extreme, kind="f32", largest=name == "max", keep_nan=decoder.take("NaN") is not None)
        if name not in ("min", "max"):
            raise decoder.unknown(f"reduction .{name}.f32")
    else:
        operation = {
            "add": np.add,
            "min": np.minimum,
            "max": np.maximum,
            "and": np.bitwise_and,
            "or": np.bitwise_or,
            "xor": np.bitwise_xor,
        }[name]

    def execute() -> None:
        decoder.machine.converged(members(), "the reduction")
        value, active = over_warps(read, decoder)
        if (active.any(axis=1) & ~active.all(axis=1)).any():
            raise decoder.unknown("form: a reduction over a part of a warp")
        write(np.repeat(reduce(operation, value.T), WARP))

    return execute


# -- order and control ---------------------------------------------------------------------------------------------------


@instruction("bar", "barrier")
def build_barrier(decoder: Decoder) -> Execute:
    machine = decoder.machine
    if decoder.take("warp"):
        decoder.need("sync")
        members = decoder.reader(decoder.operands(1)[0], "b32")
        return lambda: machine.converged(members(), "the barrier")
    decoder.take("cta")
    decoder.need("sync")
    if decoder.item.base == "barrier":
        decoder.take("aligned")
    barrier, *count = decoder.operands(1, 2)
    if barrier != Immediate(0) or count not in ([], [Immediate(machine.num_threads)]):
        raise decoder.unknown("form: only barrier 0, of all threads, is known")

    def execute() -> None:
        if (machine.mask != machine.live).any():
            elsewhere = int(np.argmax(machine.mask != machine.live))
            raise Diverged(f"thread {elsewhere}: is elsewhere when others wait at the barrier")
        machine.clock.barrier()

    return execute


@instruction("membar", "fence")
def build_fence(decoder: Decoder) -> Execute:
    """Orders one thread's own accesses, which are executed in their order anyway; it synchronises nobody."""
    decoder.take("acq_rel", "sc")
    decoder.need("cta", "gl", "sys", "gpu")
    decoder.operands(0)
    return lambda: None


@instruction("bra")
def build_branch(decoder: Decoder) -> Execute:
    decoder.take("uni")
    (label,) = decoder.operands(1)
    if label not in decoder.machine.kernel.labels:
        raise decoder.unknown(f"label {label}")
    target = decoder.machine.kernel.labels[str(label)]
    return lambda: decoder.machine.jump(target)


@instruction("ret", "exit")
def build_return(decoder: Decoder) -> Execute:
    decoder.operands(0)
    return decoder.machine.leave
