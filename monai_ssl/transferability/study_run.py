# SPDX-License-Identifier: Apache-2.0
"""Run a study from its cells to its report, or any part of the way."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from .source_study import SourceStudy
from .study_report import study_report

__all__ = ["run_study"]

logger = logging.getLogger(__name__)

_STEPS = ("cells", "measures", "report")


def run_study(
    study: SourceStudy,
    cell: Sequence[str] | None = None,
    *,
    steps: Sequence[str] = _STEPS,
    reference: str = "self",
    resamples: int = 1000,
    resume: bool = True,
) -> None:
    """Train what is missing, compute the measures that are missing, and write the report.

    Args:
        study: the study.
        cell: (source, target): train this pair only, and nothing else.
        steps: some of ``"cells"``, ``"measures"`` and ``"report"``; the report names the cells that are missing.
        reference: see :func:`monai_ssl.transferability.study_report`.
        resamples: likewise.
        resume: go on where results are there already; False refuses then.

    Raises:
        ValueError: an unknown step or cell, or there are results and ``resume`` is False.
        CellBusyError: another process is training the cell that was asked for.
    """
    unknown = sorted(set(steps) - set(_STEPS))
    if unknown or not steps:
        raise ValueError(f"steps are some of {', '.join(_STEPS)}, got {', '.join(map(str, steps)) or 'none'}")
    finished = sum(study.path(*pair).exists() for pair in study.cells())
    if finished and not resume:
        raise ValueError(f"{study.output_dir} has {finished} finished cells; use resume=True, or another output_dir")
    if cell is not None:
        study.run(cell)
        return
    if "cells" in steps:
        study.run()
    if "measures" in steps:
        study.measure()
    if "report" in steps:
        report = study_report(study, reference, resamples)
        logger.info("written to %s\n%s", report.save(study.output_dir), report.as_markdown())
