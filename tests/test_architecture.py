"""The rules of the house that a machine can check: layers, imports, file lengths, no device branches."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

LONGEST_FILE = 400
DEVICE_BRANCH = re.compile(r"\.is_cuda\b|\.is_cpu\b|\bdevice\.type\s*(==|!=|in\b)|\bdevice_type\s*(==|!=)")
# Who may import what, beyond the standard library and its own folder.
ALLOWED_IMPORTS = {
    "messages.py": set(),
    "image_path.py": set(),
    "network_bounds.py": {"fastcond.messages"},
    "config.py": {"fastcond.image_path", "fastcond.messages", "fastcond.network_bounds"},
    "ops": {"torch", "triton"},
}


def python_files(folder: Path) -> list[Path]:
    return [folder] if folder.is_file() else sorted(folder.rglob("*.py"))


def imported_modules(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; the house writes absolute ones"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_layers(repository: Path) -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"]
    result = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("part", ALLOWED_IMPORTS)
def test_lowest_layers_import_little(repository: Path, part: str) -> None:
    own = f"fastcond.{Path(part).stem}"
    foreign = [
        f"{path.relative_to(repository)} imports {name}"
        for path in python_files(repository / "fastcond" / part)
        for name in sorted(imported_modules(path))
        if not (name == own or name.startswith(f"{own}."))
        and name.split(".")[0] not in ALLOWED_IMPORTS[part] | sys.stdlib_module_names
        and name.rpartition(".")[0] not in ALLOWED_IMPORTS[part]
    ]
    assert not foreign, "\n".join(foreign)


def test_files_are_short(repository: Path) -> None:
    sources = [*(repository / "fastcond").rglob("*.py"), *(repository / "kernels").rglob("*.*")]
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sources if path.is_file()}
    long = [f"{path.relative_to(repository)}: {n} lines" for path, n in lengths.items() if n > LONGEST_FILE]
    assert not long, f"longer than {LONGEST_FILE} lines, split it:\n" + "\n".join(long)


def test_the_dispatcher_chooses_the_device(repository: Path) -> None:
    branches = [
        f"{path.relative_to(repository)}:{number}: {line.strip()}"
        for part in ("ops", "nn")
        for path in python_files(repository / "fastcond" / part)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if DEVICE_BRANCH.search(line)
    ]
    assert not branches, "register a kernel for the device instead:\n" + "\n".join(branches)
