"""metrics.jsonl: one JSON object a line, appended while training."""

from __future__ import annotations

import json
from pathlib import Path


class MetricsLog:
    """Appends records to a JSONL file, closed after each, so that a killed run keeps what it measured."""

    def __init__(self, path: Path, resume_step: int = 0) -> None:
        """Opens `path`. Records of steps after `resume_step`, which a resumed run repeats, and a torn last line are removed."""
        self.path = path
        path.touch()
        lines = path.read_text(encoding="utf-8").splitlines()
        kept = [json.dumps(record) for record in read_metrics(path) if record["step"] <= resume_step]
        if len(kept) != len(lines):
            # Written aside and renamed: a full disk must not cost the records that are there.
            partial = path.with_name(f".{path.name}.partial")
            partial.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
            partial.replace(path)

    def write(self, record: dict[str, float | int]) -> None:
        """Append one record, which has at least "step"."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def read_metrics(path: Path) -> list[dict[str, float]]:
    """All whole records of a metrics file, in order; a line torn by a kill is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records
