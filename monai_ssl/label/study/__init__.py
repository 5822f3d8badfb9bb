# SPDX-License-Identifier: Apache-2.0
"""Simulated annotation: how good a model gets with so many labels, by who chose the images."""

from __future__ import annotations

from .config import LabelStudy, read_label_study
from .report import write_label_report
from .rounds import run_label_study
from .tables import StudyTables, area_under_curve, study_tables

__all__ = [
    "LabelStudy",
    "StudyTables",
    "area_under_curve",
    "read_label_study",
    "run_label_study",
    "study_tables",
    "write_label_report",
]
