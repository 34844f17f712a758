"""The build: every native source is named, and a missing library is told from a broken one."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import NoReturn

import pytest

from fastcond.ops import native


def test_cmake_names_every_source(repository: Path) -> None:
    named = set(re.findall(r"\bkernels/[\w/]+\.(?:cpp|cu)\b", (repository / "CMakeLists.txt").read_text()))
    sources = [*(repository / "kernels").rglob("*.cpp"), *(repository / "kernels").rglob("*.cu")]
    assert named == {path.relative_to(repository).as_posix() for path in sources}


def failing_import(monkeypatch: pytest.MonkeyPatch, error: ImportError) -> None:
    def fail(name: str) -> NoReturn:
        raise error

    monkeypatch.setattr(importlib, "import_module", fail)


def test_a_library_that_was_not_built_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    failing_import(monkeypatch, ModuleNotFoundError("No module named 'fastcond._native'", name="fastcond._native"))
    assert native._load() is None


@pytest.mark.parametrize(
    "error",
    [ImportError("undefined symbol: GOMP_parallel"), ModuleNotFoundError("No module named 'other'", name="other")],
)
def test_a_library_that_does_not_load_is_an_error(monkeypatch: pytest.MonkeyPatch, error: ImportError) -> None:
    failing_import(monkeypatch, error)
    with pytest.raises(ImportError, match=str(error)):
        native._load()
