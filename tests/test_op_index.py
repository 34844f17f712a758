"""kernels/README.md names, for every op, the file of each column, exactly where that file exists."""

from __future__ import annotations

from pathlib import Path

COLUMNS = {
    "reference": "fastcond/ops/{op}/reference.py",
    "triton": "fastcond/ops/{op}/triton_kernels.py",
    "cpu": "kernels/cpu/{op}.cpp",
    "cuda": "kernels/cuda/{op}.cu",
    "test": "tests/ops/test_{op}.py",
    "bench": "benchmarks/bench_{op}.py",
}
REQUIRED = {"reference", "test", "bench"}


def read_index(repository: Path) -> tuple[list[str], dict[str, dict[str, str]]]:
    lines = (repository / "kernels/README.md").read_text(encoding="utf-8").splitlines()
    table = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    header, _, *rows = table
    return header, {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows}


def test_columns(repository: Path) -> None:
    assert read_index(repository)[0] == ["op", *COLUMNS]


def test_every_op_has_a_row(repository: Path) -> None:
    folders = {path.parent.name for path in (repository / "fastcond/ops").glob("*/__init__.py")}
    assert set(read_index(repository)[1]) == folders


def test_cells_are_true(repository: Path) -> None:
    wrong = []
    for op, row in read_index(repository)[1].items():
        for column, pattern in COLUMNS.items():
            path = pattern.format(op=op)
            truth = path if (repository / path).is_file() else "-"
            if row[column] != truth or (truth == "-" and column in REQUIRED):
                wrong.append(f"{op}, {column}: the index says {row[column]}, the tree says {truth}")
    assert not wrong, "\n".join(wrong)


def test_every_kernel_belongs_to_an_op(repository: Path) -> None:
    ops = set(read_index(repository)[1])
    sources = [*(repository / "kernels").glob("cpu/*.cpp"), *(repository / "kernels").glob("cuda/*.cu")]
    # <op>_kernel.cpp is compiled once for each instruction set; <op>.cpp chooses. A frozen network is steps, ops and others.
    others = {"fingerprint", "instruction_set", "network", "network_steps"}
    stems = {path.stem.removesuffix("_kernel") for path in sources} - others
    assert stems <= ops
