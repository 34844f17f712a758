"""ldmatrix and stmatrix, with which Triton moves tiles of 16-bit numbers between registers and shared memory."""

from __future__ import annotations

import numpy as np

from tests.support.ptx.machine import Decoder, Execute, instruction
from tests.support.ptx.memory import WARP

SIDE, ROW_BYTES = 8, 16


@instruction("ldmatrix", "stmatrix")
def build_matrix(decoder: Decoder) -> Execute:
    """One, two or four 8x8 matrices: lane 8i + r has the address of row r of matrix i; lane l holds two elements of row l/4.

    With .trans a lane holds elements of a column instead. The lane with the address is the one that counts as touching the
    row. All lanes take part, but the instruction orders no memory.
    """
    for modifier in ("sync", "aligned", "m8n8", "b16"):
        decoder.need(modifier)
    count = int(decoder.need("x1", "x2", "x4")[1:])
    transposed = decoder.take("trans") is not None
    decoder.need("shared", "shared::cta")
    loads = decoder.item.base == "ldmatrix"
    registers, place = decoder.operands(2) if loads else decoder.operands(2)[::-1]
    parts = registers if isinstance(registers, tuple) else (registers,)
    if len(parts) != count:
        raise decoder.unknown(f"form: {len(parts)} registers for {count} matrices")
    address, machine = decoder.address(place), decoder.machine
    rows = np.flatnonzero(np.arange(machine.num_threads) % WARP < SIDE * count)

    def rows_of_active_warps() -> np.ndarray:
        machine.converged(np.full(machine.num_threads, 0xFFFFFFFF, np.uint32), "a matrix instruction", orders=False)
        return rows[machine.mask[rows]]

    if loads:
        writers = [decoder.writer(part) for part in parts]

        def load() -> None:
            lanes = rows_of_active_warps()
            where, data = address(), np.zeros((machine.num_threads, ROW_BYTES), np.uint8)
            for memory, chosen in machine.shared_space.split(where[lanes], ROW_BYTES, lanes):
                data[lanes[chosen]] = memory.load(where[lanes][chosen], ROW_BYTES, lanes[chosen])
            elements = data.view(np.uint16).reshape(-1, WARP // SIDE, SIDE, SIDE)
            elements = elements.swapaxes(2, 3) if transposed else elements
            for index, write in enumerate(writers):
                write(np.ascontiguousarray(elements[:, index]).reshape(-1).view(np.uint32))

        return load

    readers = [decoder.reader(part, "b32") for part in parts]

    def store() -> None:
        lanes = rows_of_active_warps()
        elements = np.zeros((machine.num_threads // WARP, WARP // SIDE, SIDE, SIDE), np.uint16)
        for index, read in enumerate(readers):
            elements[:, index] = read().view(np.uint16).reshape(-1, SIDE, SIDE)
        elements = elements.swapaxes(2, 3) if transposed else elements
        data = np.ascontiguousarray(elements).view(np.uint8).reshape(-1, ROW_BYTES)
        where = address()[lanes]
        for memory, chosen in machine.shared_space.split(where, ROW_BYTES, lanes):
            memory.store(where[chosen], ROW_BYTES, lanes[chosen], data[lanes[chosen]])

    return store
