"""metrics.jsonl survives kills and resumes."""

from __future__ import annotations

from pathlib import Path

from fastcond.training.metrics import MetricsLog, read_metrics


def test_records_are_on_disk_when_written(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write({"step": 50, "loss": 0.5})
    log.write({"step": 100, "loss": 0.25})
    assert read_metrics(log.path) == [{"step": 50, "loss": 0.5}, {"step": 100, "loss": 0.25}]


def test_a_resumed_run_drops_what_it_repeats_and_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 50}\n{"step": 100}\n{"step": 150}\n{"st')
    log = MetricsLog(path, resume_step=100)
    log.write({"step": 150, "loss": 1.0})
    assert read_metrics(path) == [{"step": 50}, {"step": 100}, {"step": 150, "loss": 1.0}]


def test_a_file_without_anything_to_drop_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step":   50}\n')
    MetricsLog(path, resume_step=50)
    assert path.read_text() == '{"step":   50}\n'
