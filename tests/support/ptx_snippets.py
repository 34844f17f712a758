"""Kernels of a few PTX instructions, for the tests of tests/support/ptx."""

from __future__ import annotations

import numpy as np

from tests.support import ptx

LANES = 32
REGISTERS = {1: "b16", 2: "b16", 4: "b32", 8: "b64"}


def entry(parameters: int, body: str, shared: int = 0) -> ptx.Kernel:
    """A kernel of pointers p0, p1, ... in %x0, %x1, ..., with the thread's number in %t and some registers to use."""
    listed = ", ".join(f".param .u64 .ptr .global .align 1 p{index}" for index in range(parameters))
    loads = "".join(f"ld.param.b64 %x{index}, [p{index}];\n" for index in range(parameters))
    return ptx.parse(
        f""".version 8.7
        .target sm_90a
        .address_size 64
        {".extern .shared .align 16 .b8 global_smem[];" if shared else ""}
        .visible .entry k({listed})
        .reqntid 32
        {{
            .reg .pred %p<9>; .reg .b16 %s<9>; .reg .b32 %t, %r<19>; .reg .b64 %x<9>, %y<9>;
            mov.u32 %t, %tid.x;
            {loads}
            {body}
            ret;
        }}"""
    )


def apply(text: str, result: type, *inputs: np.ndarray) -> np.ndarray:
    """Run `text`, one lane for each element of the inputs %a, %b, %c; what it leaves in %d, as numbers of type `result`."""
    count = len(inputs[0])
    lanes = -(-count // LANES) * LANES
    padded = [np.concatenate([array, np.repeat(array[-1:], lanes - count)]) for array in inputs]
    output = np.zeros(lanes, result)
    body = f".reg .{REGISTERS[output.itemsize]} %d;\n"
    for index, (name, array) in enumerate(zip("abc", padded, strict=False)):
        kind, size = REGISTERS[array.itemsize], array.itemsize
        body += f".reg .{kind} %{name};\nmul.wide.u32 %y{index}, %t, {size};\nadd.s64 %y{index}, %x{index}, %y{index};\n"
        body += f"ld.global.b{8 * size} %{name}, [%y{index}];\n"
    body += f"{text}\nmul.wide.u32 %y8, %t, {output.itemsize};\nadd.s64 %y8, %x{len(inputs)}, %y8;\n"
    kernel = entry(len(inputs) + 1, body + f"st.global.b{8 * output.itemsize} [%y8], %d;")
    kernel.num_threads = lanes
    ptx.run(kernel, (1,), lanes, [*padded, output])
    return output[:count]


def u32(*values: int) -> np.ndarray:
    return np.array([value & 0xFFFFFFFF for value in values], np.uint32)


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)
