# SPDX-License-Identifier: Apache-2.0
"""The report of a classifier: areas under the ROC curve with intervals by patient, and where it errs."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import monai_ssl
from monai_ssl.evaluation.plots import confusion_png
from monai_ssl.metrics import area_under_roc, bootstrap_interval, roc_per_class
from monai_ssl.weights import atomic_file

__all__ = ["ClassifierReport", "RunFacts", "classifier_report", "describe_lineage", "device_name", "package_versions"]

_THRESHOLD = 0.5


def package_versions() -> dict[str, str]:
    """Return the versions that a figure depends on."""
    names = ("monai", "torch", "numpy", "scikit-learn")
    own = {"monai_ssl": monai_ssl.__version__, "python": platform.python_version()}
    return own | {name: version(name) for name in names}


def device_name(device: torch.device | str) -> str:
    """Return the device in words: ``"cpu (2 threads)"`` or the name of the GPU."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.get_num_threads()} threads)"


def describe_lineage(lineage: Sequence[dict[str, Any]]) -> str:
    """Name the training stages that weights went through, oldest first; ``"random"`` without any.

    >>> describe_lineage([{"method": "ImageNet"}, {"method": "C2L", "images_seen": 64000}])
    'ImageNet > C2L (64000 images seen)'
    """
    stages = []
    for stage in lineage:
        seen = stage.get("images_seen")
        stages.append(str(stage.get("method", "unknown")) + (f" ({seen} images seen)" if seen else ""))
    return " > ".join(stages) or "random"


@dataclass(frozen=True)
class RunFacts:
    """What every row of a report says about the run it comes from.

    Attributes:
        mode: ``"linear"``, ``"finetune"``, ``"scratch"``, or what else was evaluated.
        lineage: what the encoder went through before, see :func:`describe_lineage`.
        label_fraction: share of the training labels, or their number.
        num_labels: labelled images used.
        seed: of the run.
        split_hash: of the split of patients into train, val and test.
        wall_time_s: of the run up to the report.
        device: see :func:`device_name`.
        versions: see :func:`package_versions`.
    """

    mode: str
    lineage: str
    label_fraction: float
    num_labels: int
    seed: int
    split_hash: str
    wall_time_s: float
    device: str
    versions: dict[str, str] = field(default_factory=package_versions)


@dataclass(frozen=True)
class ClassifierReport:
    """A report as rows of plain values; ``str(report)`` is its Markdown.

    Attributes:
        rows: the first row is over all classes (``class`` is "all"), then one for each class, unless the question is
            binary. Every row carries the :class:`RunFacts`.
        confusion: the confusion matrix as ``{"columns": [...], "rows": [[name, count, ...], ...]}``.
        title: what was evaluated, for example "test".
    """

    rows: list[dict[str, Any]]
    confusion: dict[str, list]
    title: str

    @property
    def auc(self) -> float:
        """Area under the ROC curve over all classes."""
        return self.rows[0]["auc"]

    def __str__(self) -> str:
        return self.as_markdown()

    def summary(self) -> str:
        """Return the main figures in one line."""
        first = self.rows[0]
        interval = f"{_number(first['auc_low'])} to {_number(first['auc_high'])}"
        classes = ", ".join(f"{row['class']} {_number(row['auc'])}" for row in self.rows[1:])
        return f"{self.title} AUC {_number(self.auc)} ({interval})" + (f": {classes}" if classes else "")

    def as_markdown(self) -> str:
        """Return the report as two tables and the facts of the run."""
        first = self.rows[0]
        confidence = f"{first['confidence']:.0%}"
        unit = "patients" if first["by_patient"] else "images"
        lines = [
            f"# Classification report: {self.title}",
            "",
            f"Area under the ROC curve with its {confidence} bootstrap interval ({first['resamples']} resamples of "
            f"{unit}); sensitivity and specificity {_rule_words(self.rows)}.",
            "",
            "| class | images with | without | AUC | interval | sensitivity | specificity |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in self.rows:
            cells = [row["class"], row["positives"], row["negatives"], _number(row["auc"])]
            cells.append(f"{_number(row['auc_low'])} to {_number(row['auc_high'])}")
            lines.append(_line([*cells, _number(row["sensitivity"]), _number(row["specificity"])]))
        lines += ["", "## Confusion matrix", "", _line(self.confusion["columns"])]
        lines += ["|" + "---|" * len(self.confusion["columns"]), *map(_line, self.confusion["rows"])]
        versions = ", ".join(f"{name} {value}" for name, value in first["versions"].items())
        lines += ["", "## The run", ""]
        names = ("mode", "lineage", "label_fraction", "num_labels", "seed", "split_hash", "wall_time_s", "device")
        lines += [f"- {name}: {first[name]}" for name in names]
        return "\n".join([*lines, f"- versions: {versions}", ""])

    def save(self, folder: str | os.PathLike, name: str = "report") -> Path:
        """Write ``name.json``, ``name.csv``, ``name.md`` and ``name_confusion.png`` into a folder.

        Returns:
            The path of the Markdown file.
        """
        folder = Path(folder)
        flat = [{**row, "versions": json.dumps(row["versions"])} for row in self.rows]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=list(flat[0]))
        writer.writeheader()
        writer.writerows(flat)
        data = {"title": self.title, "rows": self.rows, "confusion": self.confusion}
        contents = {
            f"{name}.json": json.dumps(data, indent=2).encode(),
            f"{name}.csv": text.getvalue().encode(),
            f"{name}.md": self.as_markdown().encode(),
            f"{name}_confusion.png": confusion_png(self.confusion, f"{self.title}: AUC {_number(self.auc)}"),
        }
        for file_name, content in contents.items():
            with atomic_file(folder / file_name) as file:
                file.write(content)
        return folder / f"{name}.md"


def classifier_report(
    y_true: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
    facts: RunFacts,
    *,
    groups: Sequence | None = None,
    title: str = "test",
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> ClassifierReport:
    """Evaluate the probabilities of a classifier.

    Args:
        y_true: ``(N,)`` classes ``0 .. K-1``, or ``(N, K)`` findings of 0 and 1; -1 or NaN is unknown.
        probabilities: ``(N, K)``. With two competing classes the second one is the positive one.
        class_names: K names.
        facts: of the run.
        groups: ``(N,)`` patients: whole patients are resampled.
        title: what was evaluated.
        resamples: of the bootstrap.
        confidence: of the intervals.
        seed: of the bootstrap.

    Returns:
        The report.

    Raises:
        ValueError: shapes do not fit, or a class is missing from ``y_true`` (it is named).
    """
    y, p = np.asarray(y_true), np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 2 or p.shape[1] != len(class_names) or len(class_names) < 1:
        raise ValueError(f"probabilities {p.shape} do not fit {len(class_names)} class names")
    multilabel = y.ndim == 2
    options = {"groups": groups, "n": resamples, "confidence": confidence, "seed": seed}

    def overall(labels: np.ndarray, scores: np.ndarray) -> float:
        return area_under_roc(labels, scores, class_names=class_names)

    common = {"confidence": confidence, "resamples": resamples, "by_patient": groups is not None, **asdict(facts)}
    decided, known, truth = _decisions(y, p, multilabel)
    binary = not multilabel and p.shape[1] == 2
    columns = slice(1, 2) if binary else slice(None)
    rows = [{"class": "all", **_counts(truth, known, decided, columns), **_area(overall, y, p, options), **common}]
    for k, name in enumerate([] if binary else class_names):
        area = _area(lambda a, b, k=k: roc_per_class(a, b)[k], y, p, options)
        rows.append({"class": str(name), **_counts(truth, known, decided, slice(k, k + 1)), **area, **common})
    return ClassifierReport(rows, _confusion(y, truth, known, decided, class_names), title)


def _area(metric: Callable, y: np.ndarray, p: np.ndarray, options: dict[str, Any]) -> dict[str, float | None]:
    """The area and its interval; no interval where too few patients carry some class."""
    value = float(metric(y, p))
    try:
        interval = bootstrap_interval(metric, y, p, **options)
    except ValueError:
        return {"auc": value, "auc_low": None, "auc_high": None}
    return {"auc": value, "auc_low": interval.low, "auc_high": interval.high}


def _decisions(y: np.ndarray, p: np.ndarray, multilabel: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, K) booleans: decided for the class, label known, label positive."""
    if multilabel:
        labels = np.nan_to_num(y.astype(np.float64), nan=-1)
        return p >= _THRESHOLD, labels >= 0, labels == 1
    classes = np.arange(p.shape[1])
    labels = np.nan_to_num(y.astype(np.float64), nan=-1)
    known = np.broadcast_to((labels >= 0)[:, None], p.shape)
    return p.argmax(axis=1)[:, None] == classes, known, labels[:, None] == classes


def _counts(truth: np.ndarray, known: np.ndarray, decided: np.ndarray, columns: slice) -> dict[str, Any]:
    """Numbers of positives and negatives, sensitivity and specificity (means over several columns)."""
    truth, known, decided = truth[:, columns], known[:, columns], decided[:, columns]
    positive, negative = truth & known, ~truth & known
    with np.errstate(invalid="ignore"):
        sensitivity = (positive & decided).sum(axis=0) / positive.sum(axis=0)
        specificity = (negative & ~decided).sum(axis=0) / negative.sum(axis=0)
    return {
        "positives": int(positive.sum()),
        "negatives": int(negative.sum()),
        "sensitivity": float(sensitivity.mean()),
        "specificity": float(specificity.mean()),
    }


def _confusion(
    y: np.ndarray, truth: np.ndarray, known: np.ndarray, decided: np.ndarray, names: Sequence[str]
) -> dict[str, list]:
    """Truth down, decision across; for findings one row each with its four counts."""
    if y.ndim == 2:
        kinds = {
            "found": truth & decided,
            "missed": truth & ~decided,
            "false alarm": ~truth & decided,
            "rightly absent": ~truth & ~decided,
        }
        rows = [
            [str(name), *(int((kind & known)[:, k].sum()) for kind in kinds.values())] for k, name in enumerate(names)
        ]
        return {"columns": ["finding", *kinds], "rows": rows}
    table = (truth & known).T.astype(int) @ decided.astype(int)  # (K, N) (N, K) -> (K, K)
    rows = [[str(name), *map(int, counts)] for name, counts in zip(names, table, strict=True)]
    return {"columns": ["truth (down), decision (across)", *map(str, names)], "rows": rows}


def _rule_words(rows: list[dict[str, Any]]) -> str:
    return f"at probability {_THRESHOLD}" if len(rows) > 1 else f"of the second class at probability {_THRESHOLD}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _line(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |"
