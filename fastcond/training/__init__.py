"""Training: the loop, and what it leaves on disk."""

from fastcond.training.run_directory import Run, RunDirectory, load_run
from fastcond.training.trainer import Intervals, Progress, Trainer

__all__ = ["Intervals", "Progress", "Run", "RunDirectory", "Trainer", "load_run"]
