"""Judging samples by somebody who did not train the model."""

from fastcond.evaluation.class_accuracy import ClassReport, class_report, classify

__all__ = ["ClassReport", "class_report", "classify"]
