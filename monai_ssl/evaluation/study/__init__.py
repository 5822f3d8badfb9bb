# SPDX-License-Identifier: Apache-2.0
"""A study: is an encoder worth it, for which task, in which use, with how many labels, and how surely."""

from __future__ import annotations

from .cells import StudyCell, find_cell, study_cells
from .config import Study, StudyTask, read_study
from .perturbations import PERTURBATIONS, Perturbation, perturbed_view
from .report import study_tables, write_study_report
from .robustness import robustness_figures
from .runner import collect_cells, run_cell, run_study
from .slurm import write_slurm_array

__all__ = [
    "PERTURBATIONS",
    "Perturbation",
    "Study",
    "StudyCell",
    "StudyTask",
    "collect_cells",
    "find_cell",
    "perturbed_view",
    "read_study",
    "robustness_figures",
    "run_cell",
    "run_study",
    "study_cells",
    "study_tables",
    "write_slurm_array",
    "write_study_report",
]
