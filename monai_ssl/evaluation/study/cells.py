# SPDX-License-Identifier: Apache-2.0
"""The cells of a study: each is one encoder used in one way, with one subset of the labels and one seed."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from monai_ssl.evaluation.study.config import RANDOM, Study

__all__ = ["StudyCell", "find_cell", "study_cells"]


@dataclass(frozen=True)
class StudyCell:
    """One figure to compute.

    Attributes:
        task: name of the task.
        encoder: name of the encoder, or ``"random"``.
        mode: ``"linear"``, ``"knn"``, ``"frozen"`` or ``"finetune"``.
        fraction: share of the labels, or their number.
        seed: of the subset, of random weights and of the training.
    """

    task: str
    encoder: str
    mode: str
    fraction: float
    seed: int

    @property
    def name(self) -> str:
        """Its folder below ``cells``: ``findings/c2l/linear/fraction-0.1/seed-0``."""
        return f"{self.task}/{self.encoder}/{self.mode}/fraction-{self.fraction:g}/seed-{self.seed}"

    def folder(self, study: Study) -> Path:
        """Return where its files are."""
        return study.output_dir / "cells" / self.name

    def to_dict(self) -> dict[str, Any]:
        """Return its parts by name."""
        return asdict(self)


def study_cells(study: Study) -> list[StudyCell]:
    """Return all cells, in the order in which they are computed: seed by seed, so that early tables are whole."""
    encoders = [RANDOM, *study.encoders]
    return [
        StudyCell(task.name, encoder, mode, fraction, seed)
        for seed, task in itertools.product(study.seeds, study.tasks.values())
        for fraction, mode, encoder in itertools.product(study.fractions, study.modes_of(task), encoders)
    ]


def find_cell(study: Study, which: str) -> StudyCell:
    """Return a cell by its name or its number, counted from 0 in the order of :func:`study_cells`.

    Raises:
        ValueError: there is no such cell.
    """
    cells = study_cells(study)
    if which.isdigit() and int(which) < len(cells):
        return cells[int(which)]
    for cell in cells:
        if cell.name == which:
            return cell
    raise ValueError(f"there is no cell {which!r}: give a number below {len(cells)}, or a name such as {cells[0].name}")
