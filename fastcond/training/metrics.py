"""metrics.jsonl: one JSON object a line, appended while training."""

from __future__ import annotations

import json
from pathlib import Path


class MetricsLog:
    """Appends records to a JSONL file; each is on disk when `write` returns, so that a killed run keeps what it measured."""

    def __init__(self, path: Path, resume_step: int = 0) -> None:
        """Opens `path`. Records of steps after `resume_step`, which a resumed run repeats, and a torn last line are removed."""
        self.path = path
        records = [record for record in read_metrics(path) if record["step"] <= resume_step]
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)

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
