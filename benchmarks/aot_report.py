"""`make aot-report`: compile every Triton kernel for every architecture, no GPU needed, and write docs/aot.md.

The same variants are gated in tests/ops/test_triton_machine_code.py; this is the table to read.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import triton

from tests.support.compiled import ARCHITECTURES, Launch, compiling, machine_code
from tests.support.triton_variants import PHILOX, STEPS, norms

TARGET = Path(__file__).resolve().parents[1] / "docs" / "aot.md"
HEAD = """# The Triton kernels, compiled

Written by `make aot-report`, which compiles each kernel for GPUs that need not be there. *None of it has run on a GPU.*
Triton {triton}, torch {torch}.

No kernel has local memory (so none spills), fp64 or atomics. tests/ops/test_triton_machine_code.py asserts that, and that
tiles move in 128-bit accesses, as often as their bytes ask for.

Threads and registers are those of a CTA and of a thread, shared memory is in bytes a CTA, loads and stores are global
accesses of a thread: their number and width in bits. T0: whole groups in one CTA. T1: in a cluster of CTAs. T2: two
kernels. A norm is named by channels/groups, map, dtype, layout and what it is given.

"""
COLUMNS = ("variant", "kernel", "threads", "CTAs", "registers", "shared", "loads", "stores")


def rows(architecture: int) -> Iterator[tuple[str, Launch]]:
    """(variant, launch) of everything that is launched on sm_`architecture`."""
    for norm in norms(architecture):
        with compiling(architecture) as launches:
            norm.call()
        yield from ((f"ada_group_norm {norm}", launch) for launch in launches)
    for step in STEPS:
        with compiling(architecture) as launches:
            step.call()
        yield from ((f"diffusion_step {step}", launch) for launch in launches)
    for what, draw in PHILOX.items():
        with compiling(architecture) as launches:
            draw()
        yield from ((f"philox {what}", launch) for launch in launches)


def row(variant: str, launch: Launch) -> str:
    code, ctas = machine_code(launch), launch.kernel.metadata.num_ctas

    def widths(kind: str) -> str:
        return ", ".join(f"{count} x {width}" for width, count in sorted(code.accesses(kind).items(), reverse=True)) or "-"

    cells = (variant, launch.name, launch.threads // ctas, ctas, code.registers, code.shared, widths("LDG"), widths("STG"))
    assert code.local == 0, f"{variant}: {code.local} bytes of local memory"
    return "| " + " | ".join(map(str, cells)) + " |"


def table(architecture: int) -> list[str]:
    lines = [f"## sm_{architecture}", "", "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    seen = set()
    for variant, launch in rows(architecture):
        line = row(variant, launch)
        if line not in seen:
            print(f"sm_{architecture} {line}", file=sys.stderr)
            seen.add(line)
            lines.append(line)
    return [*lines, ""]


def main() -> None:
    """Write the report."""
    head = HEAD.format(triton=triton.__version__, torch=torch.__version__)
    lines = [line for architecture in ARCHITECTURES for line in table(architecture)]
    TARGET.write_text(head + "\n".join(lines).rstrip() + "\n", encoding="utf-8")
    print(TARGET)


if __name__ == "__main__":
    main()
