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

from monai_ssl.evaluation.segmentation_report import MEASURES, class_mean
from monai_ssl.metrics import BootstrapInterval, area_under_roc, bootstrap_difference

__all__ = ["collect_reports", "compare_predictions", "compare_segmentations", "report_table"]

_MEASURES = ("auc", "dice")  # the main figure of each kind of report


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

    A cell has the mean over the seeds of the area under the ROC curve, or of the Dice of segmentations, its standard
    deviation and their number.

    Args:
        rows: of :func:`collect_reports`.

    Raises:
        ValueError: the reports are of different kinds.
    """
    kinds = {next((name for name in _MEASURES if name in row), None) for row in rows}
    if len(kinds) != 1 or kinds == {None}:
        raise ValueError("the reports are of different kinds: put classifications and segmentations apart")
    measure = kinds.pop()
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
        shown = " | ".join(_cell([row[measure] for row in by_fraction.get(fraction, [])]) for fraction in fractions)
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


def compare_segmentations(
    first: str | os.PathLike,
    second: str | os.PathLike,
    measure: str = "dice",
    class_name: str | None = None,
    **options: Any,
) -> BootstrapInterval:
    """Return the difference of two runs on the same volumes, with its paired interval by patient.

    Args:
        first: a ``*_volumes.csv`` of a segmentation report.
        second: another one, of the same volumes and classes.
        measure: ``"dice"``, ``"surface_distance_mm"`` or ``"hausdorff95_mm"`` (of which less is better).
        class_name: compare one class; None: the mean over all.
        options: of :func:`monai_ssl.metrics.bootstrap_difference`.

    Raises:
        ValueError: the files are of different volumes or classes, or there is no such measure or class.
    """
    if measure not in MEASURES:
        raise ValueError(f"measure must be one of {', '.join(MEASURES)}, got {measure!r}")
    (paths, patients, classes, a), (other_paths, _, other_classes, b) = (
        _read_volumes(path, measure) for path in (first, second)
    )
    if (paths, classes) != (other_paths, other_classes):
        raise ValueError(f"{first} and {second} are not of the same volumes and classes")
    if class_name is not None:
        if class_name not in classes:
            raise ValueError(f"there is no class {class_name!r}; there are {', '.join(classes)}")
        a, b = (values[:, [classes.index(class_name)]] for values in (a, b))
    return bootstrap_difference(
        lambda _, values: class_mean(values), np.zeros(len(paths)), a, b, groups=patients, **options
    )


def _read_volumes(path: str | os.PathLike, measure: str) -> tuple[list[str], np.ndarray, list[str], np.ndarray]:
    """Volumes, their patients, classes, and the measure (N, K), NaN where it is not defined."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"path", "patient", "class", measure} <= rows[0].keys():
        raise ValueError(f"{path} is no table of segmented volumes")
    classes = list(dict.fromkeys(row["class"] for row in rows))
    patients = {row["path"]: row["patient"] for row in rows}
    paths = sorted(patients)
    values = np.full((len(paths), len(classes)), np.nan)
    place = {name: number for number, name in enumerate(paths)}
    for row in rows:
        values[place[row["path"]], classes.index(row["class"])] = float(row[measure] or "nan")
    return paths, np.array([patients[name] for name in paths]), classes, values


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


def _cell(values: list[float | None]) -> str:
    values = [value for value in values if value is not None]
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.3f} ({len(values)})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"
