# SPDX-License-Identifier: Apache-2.0
"""The report of a segmentation network: Dice and surface distances with intervals by patient, and what was missed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monai_ssl.evaluation.run_facts import (
    RunFacts,
    bounded_value,
    csv_bytes,
    run_lines,
    shown_interval,
    shown_number,
    table_line,
    write_report_files,
)
from monai_ssl.metrics import MaskScore

__all__ = ["SegmentationReport", "class_mean", "segmentation_report"]

MEASURES = ("dice", "surface_distance_mm", "hausdorff95_mm")
_OUTCOMES = ("found", "missed", "false alarm", "rightly absent")
_RULE = (
    "A class that a volume neither has nor was given is left out of the Dice and counted as *rightly absent*. One that "
    "was missed, or given where there is none, counts as Dice 0. Surface distances are means over the volumes where "
    "both masks have voxels; the others are counted, not averaged."
)


def class_mean(values: np.ndarray) -> float:
    """Return the mean over the classes of each class's mean over the volumes where it is defined.

    Args:
        values: ``(N, K)``, NaN where a measure is not defined.

    Raises:
        ValueError: it is defined nowhere.
    """
    values = np.asarray(values, dtype=np.float64)
    defined = ~np.isnan(values)
    if not defined.any():
        raise ValueError("the measure is not defined on any volume")
    counts = defined.sum(axis=0)
    sums = np.where(defined, values, 0).sum(axis=0)
    return float((sums[counts > 0] / counts[counts > 0]).mean())


@dataclass(frozen=True)
class SegmentationReport:
    """A report as rows of plain values; ``str(report)`` is its Markdown.

    Attributes:
        rows: the first row is over all classes (``class`` is "all"), then one for each class, unless there is but one.
            Every row carries the :class:`RunFacts`.
        volumes: one row for each volume and class, see :class:`monai_ssl.metrics.MaskScore`.
        title: what was evaluated, for example "test".
        picture: PNG bytes, or None.
    """

    rows: list[dict[str, Any]]
    volumes: list[dict[str, Any]]
    title: str
    picture: bytes | None = None

    @property
    def dice(self) -> float | None:
        """Mean Dice over all classes."""
        return self.rows[0]["dice"]

    def __str__(self) -> str:
        return self.as_markdown()

    def summary(self) -> str:
        """Return the main figures in one line."""
        first = self.rows[0]
        classes = ", ".join(f"{row['class']} {shown_number(row['dice'])}" for row in self.rows[1:])
        distance = f"95th percentile of the surface distance {shown_number(first['hausdorff95_mm'], 1)} mm"
        main = f"{self.title} Dice {shown_number(self.dice)} ({shown_interval(first, 'dice')}), {distance}"
        return main + (f": {classes}" if classes else "")

    def as_markdown(self) -> str:
        """Return the report as tables and the facts of the run."""
        first = self.rows[0]
        unit = "patients" if first["by_patient"] else "volumes"
        lines = [
            f"# Segmentation report: {self.title}",
            "",
            f"{first['volumes']} volumes on the grid they were prepared at"
            + (f" ({first['spacing']})" if first["spacing"] else "")
            + f". In brackets the {first['confidence']:.0%} bootstrap interval ({first['resamples']} resamples of "
            f"{unit}). {_RULE}",
            "",
            "| class | Dice | mean surface distance, mm | its 95th percentile, mm | " + " | ".join(_OUTCOMES) + " |",
            "|---|---|---|---|" + "---|" * len(_OUTCOMES),
        ]
        for row in self.rows:
            cells = [row["class"]]
            for measure, digits in zip(MEASURES, (3, 2, 1), strict=True):
                bounds = f" ({shown_interval(row, measure, digits)})" if row[f"{measure}_low"] is not None else ""
                cells.append(f"{shown_number(row[measure], digits)}{bounds}")
            lines.append(table_line([*cells, *(row[outcome.replace(" ", "_")] for outcome in _OUTCOMES)]))
        worst = sorted((row for row in self.volumes if row["dice"] is not None), key=lambda row: row["dice"])[:5]
        lines += ["", "## The worst", "", "| volume | class | Dice | outcome | true ml | predicted ml |"]
        lines.append("|---|---|---|---|---|---|")
        for row in worst:
            cells = [row["path"], row["class"], shown_number(row["dice"]), row["outcome"]]
            lines.append(table_line([*cells, shown_number(row["truth_ml"], 2), shown_number(row["predicted_ml"], 2)]))
        return "\n".join([*lines, "", *run_lines(first)])

    def save(self, folder: str | os.PathLike, name: str = "report") -> Path:
        """Write ``name.json``, ``.csv``, ``.md``, ``name_volumes.csv`` and ``name_examples.png`` into a folder.

        Returns:
            The path of the Markdown file.
        """
        others = {"_volumes.csv": csv_bytes([{k: _cell(v) for k, v in row.items()} for row in self.volumes])}
        if self.picture is not None:
            others["_examples.png"] = self.picture
        data = {"title": self.title, "rows": self.rows, "volumes": self.volumes}
        return write_report_files(folder, name, self.rows, data, self.as_markdown(), others)


def segmentation_report(
    scores: Sequence[Sequence[MaskScore]],
    class_names: Sequence[str],
    facts: RunFacts,
    *,
    paths: Sequence[str] | None = None,
    groups: Sequence | None = None,
    spacing: str = "",
    picture: bytes | None = None,
    title: str = "test",
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> SegmentationReport:
    """Sum up the scores of volumes.

    Args:
        scores: for each of N volumes one score for each of K classes.
        class_names: K names.
        facts: of the run.
        paths: N names of the volumes; None: their numbers.
        groups: ``(N,)`` patients: whole patients are resampled.
        spacing: of the grid that was scored, in words.
        picture: PNG bytes to be saved with it.
        title: what was evaluated.
        resamples: of the bootstrap.
        confidence: of the intervals.
        seed: of the bootstrap.

    Returns:
        The report.

    Raises:
        ValueError: there is no volume, or shapes do not fit.
    """
    if not len(scores) or any(len(each) != len(class_names) for each in scores):
        raise ValueError(f"a report needs volumes with one score for each of {len(class_names)} classes")
    paths = [str(number) for number in range(len(scores))] if paths is None else list(paths)
    patients = paths if groups is None else [str(group) for group in groups]
    volumes = [
        {
            "path": path,
            "patient": patient,
            "class": name,
            "outcome": score.outcome,
            **{key: _plain(value) for key, value in asdict(score).items()},
        }
        for path, patient, each in zip(paths, patients, scores, strict=True)
        for name, score in zip(class_names, each, strict=True)
    ]
    options = {"groups": groups, "n": resamples, "confidence": confidence, "seed": seed}
    common = {
        "volumes": len(scores),
        "spacing": spacing,
        "confidence": confidence,
        "resamples": resamples,
        "by_patient": groups is not None,
        **asdict(facts),
    }
    values = {name: np.array([[getattr(score, name) for score in each] for each in scores]) for name in MEASURES}
    outcomes = np.array([[score.outcome for score in each] for each in scores])
    parts = [("all", slice(None)), *((str(name), slice(k, k + 1)) for k, name in enumerate(class_names))]
    rows = [
        {"class": name, **_measures(values, part, options), **_counts(outcomes[:, part]), **common}
        for name, part in (parts if len(class_names) > 1 else parts[:1])
    ]
    return SegmentationReport(rows, volumes, title, picture)


def _measures(values: Mapping[str, np.ndarray], part: slice, options: dict[str, Any]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for name, table in values.items():
        if np.isnan(table[:, part]).all():
            found |= {name: None, f"{name}_low": None, f"{name}_high": None}
        else:
            found |= bounded_value(name, class_mean, table[:, part], **options)
    return found


def _counts(outcomes: np.ndarray) -> dict[str, int]:
    return {outcome.replace(" ", "_"): int((outcomes == outcome).sum()) for outcome in _OUTCOMES}


def _plain(value: float) -> float | None:
    """JSON knows no NaN."""
    return None if value != value else float(value)


def _cell(value: Any) -> Any:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value
