"""A JSON file of one object, read with an error that names the file and what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_json(path: Path, remedy: str = "; restore it or train again") -> dict[str, Any]:
    """A file's object. Raises: ValueError for a file that is missing or holds something else; `remedy` ends its message."""
    if not path.exists():
        raise ValueError(f"{path} is missing; the folder is not whole")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also of thousands of digits or brackets
        raise ValueError(f"{path} is not valid JSON ({error}){remedy}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {type(values).__name__}, not an object{remedy}")
    return values
