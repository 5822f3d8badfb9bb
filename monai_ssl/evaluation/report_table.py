# SPDX-License-Identifier: Apache-2.0
"""Many reports side by side: means over seeds, and whether one start is better than another on the same patients."""

from __future__ import annotations

import csv
import json
import os
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from monai_ssl.metrics import BootstrapInterval, area_under_roc, bootstrap_difference

__all__ = ["collect_reports", "compare_predictions", "report_table"]


def collect_reports(folder: str | os.PathLike, name: str = "test_report") -> list[dict[str, Any]]:
    """Return the first row (all classes) of every report below a folder, with the run's folder as ``"run"``.

    Raises:
        FileNotFoundError: there is no report.
        ValueError: the reports are of different splits, so that their figures can't be compared.
    """
    rows = []
    for path in sorted(Path(folder).rglob(f"{name}.json")):
        row = json.loads(path.read_text(encoding="utf-8"))["rows"][0]
        rows.append({**row, "run": str(path.parent.relative_to(folder))})
    if not rows:
        raise FileNotFoundError(f"there is no {name}.json below {folder}")
    hashes = sorted({row["split_hash"] for row in rows})
    if len(hashes) > 1:
        raise ValueError(f"the reports below {folder} are of {len(hashes)} different splits ({', '.join(hashes)})")
    return rows


def report_table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table: one line for each mode and start, one column for each share of the labels.

    A cell has the mean of the area under the ROC curve over the seeds, its standard deviation and their number.

    Args:
        rows: of :func:`collect_reports`.
    """
    cells: dict[tuple[str, str], dict[float, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        cells[row["mode"], row["lineage"]][row["label_fraction"]].append(row)
    fractions = sorted({row["label_fraction"] for row in rows})
    lines = [
        "| mode | encoder | " + " | ".join(_fraction_name(fraction) for fraction in fractions) + " | s a run |",
        "|---|---|" + "---|" * (len(fractions) + 1),
    ]
    for (mode, lineage), by_fraction in sorted(cells.items()):
        seconds = statistics.median(row["wall_time_s"] for found in by_fraction.values() for row in found)
        shown = " | ".join(_cell([row["auc"] for row in by_fraction.get(fraction, [])]) for fraction in fractions)
        lines.append(f"| {mode} | {lineage} | {shown} | {seconds:.0f} |")
    return "\n".join(lines)


def compare_predictions(
    first: str | os.PathLike, second: str | os.PathLike, groups: dict[str, str] | None = None, **options: Any
) -> BootstrapInterval:
    """Return the difference of two runs' areas under the ROC curve on the same images, with its paired interval.

    Args:
        first: a ``*_predictions.csv`` of competing classes.
        second: another one, of the same images and classes.
        groups: path of an image -> its patient; whole patients are resampled.
        options: of :func:`monai_ssl.metrics.bootstrap_difference`.

    Raises:
        ValueError: the files are of different images, truths or classes.
    """
    (paths, truth, classes, a), (other_paths, other_truth, other_classes, b) = map(_read_predictions, (first, second))
    if (paths, truth, classes) != (other_paths, other_truth, other_classes):
        raise ValueError(f"{first} and {second} are not of the same images, labels and classes")
    if not set(truth) <= set(classes):
        raise ValueError(f"{first} holds findings; compare one finding at a time with bootstrap_difference")
    labels = np.array([classes.index(name) for name in truth])
    patients = None if groups is None else np.array([groups[path] for path in paths])
    return bootstrap_difference(area_under_roc, labels, a, b, groups=patients, **options)


def _read_predictions(path: str | os.PathLike) -> tuple[list[str], list[str], list[str], np.ndarray]:
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    if header[:2] != ["path", "truth"] or not rows:
        raise ValueError(f"{path} is no file of predictions")
    rows.sort()
    scores = np.array([[float(value) for value in row[2:]] for row in rows])
    return [row[0] for row in rows], [row[1] for row in rows], header[2:], scores


def _fraction_name(fraction: float) -> str:
    return f"{fraction:.4g} labels" if fraction > 1 else f"{100 * fraction:.3g} %"


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.3f} ({len(values)})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"
