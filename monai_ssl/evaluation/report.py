# SPDX-License-Identifier: Apache-2.0
"""The report of a classifier: areas under the ROC curve with intervals by patient, and where it errs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monai_ssl.evaluation.plots import confusion_png
from monai_ssl.evaluation.run_facts import (
    RunFacts,
    bounded_value,
    run_lines,
    shown_interval,
    shown_number,
    table_line,
    write_report_files,
)
from monai_ssl.metrics import area_under_roc, roc_per_class

__all__ = ["ClassifierReport", "classifier_report"]

_THRESHOLD = 0.5


@dataclass(frozen=True)
class ClassifierReport:
    """A report as rows of plain values; ``str(report)`` is its Markdown.

    Attributes:
        rows: the first row is over all classes (``class`` is "all"), then one for each class, unless the question is
            binary. Every row carries the :class:`RunFacts`.
        confusion: the confusion matrix as ``{"columns": [...], "rows": [[name, count, ...], ...]}``.
        title: what was evaluated, for example "test".
        noun: what was classified, in a word.
    """

    rows: list[dict[str, Any]]
    confusion: dict[str, list]
    title: str
    noun: str = "images"

    @property
    def auc(self) -> float:
        """Area under the ROC curve over all classes."""
        return self.rows[0]["auc"]

    def __str__(self) -> str:
        return self.as_markdown()

    def summary(self) -> str:
        """Return the main figures in one line."""
        first = self.rows[0]
        interval = shown_interval(first, "auc")
        classes = ", ".join(f"{row['class']} {shown_number(row['auc'])}" for row in self.rows[1:])
        return f"{self.title} AUC {shown_number(self.auc)} ({interval})" + (f": {classes}" if classes else "")

    def as_markdown(self) -> str:
        """Return the report as two tables and the facts of the run."""
        first = self.rows[0]
        confidence = f"{first['confidence']:.0%}"
        unit = "patients" if first["by_patient"] else self.noun
        lines = [
            f"# Classification report: {self.title}",
            "",
            f"Area under the ROC curve with its {confidence} bootstrap interval ({first['resamples']} resamples of "
            f"{unit}); sensitivity and specificity {_rule_words(self.rows)}.",
            *(["", f"The network sees {first['seen']}."] if first["seen"] else []),
            "",
            f"| class | {self.noun} with | without | AUC | interval | sensitivity | specificity |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in self.rows:
            cells = [row["class"], row["positives"], row["negatives"], shown_number(row["auc"])]
            cells.append(shown_interval(row, "auc"))
            lines.append(table_line([*cells, shown_number(row["sensitivity"]), shown_number(row["specificity"])]))
        lines += ["", "## Confusion matrix", "", table_line(self.confusion["columns"])]
        lines += ["|" + "---|" * len(self.confusion["columns"]), *map(table_line, self.confusion["rows"])]
        return "\n".join([*lines, "", *run_lines(first)])

    def save(self, folder: str | os.PathLike, name: str = "report") -> Path:
        """Write ``name.json``, ``name.csv``, ``name.md`` and ``name_confusion.png`` into a folder.

        Returns:
            The path of the Markdown file.
        """
        data = {"title": self.title, "rows": self.rows, "confusion": self.confusion}
        picture = confusion_png(self.confusion, f"{self.title}: AUC {shown_number(self.auc)}")
        return write_report_files(folder, name, self.rows, data, self.as_markdown(), {"_confusion.png": picture})


def classifier_report(
    y_true: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
    facts: RunFacts,
    *,
    groups: Sequence | None = None,
    title: str = "test",
    noun: str = "images",
    seen: str = "",
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
        noun: what was classified, in a word.
        seen: what of an image the network sees, see :meth:`monai_ssl.evaluation.Preprocessing.describe`.
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

    common = {"confidence": confidence, "resamples": resamples, "by_patient": groups is not None, "seen": seen}
    common |= asdict(facts)
    decided, known, truth = _decisions(y, p, multilabel)
    binary = not multilabel and p.shape[1] == 2
    columns = slice(1, 2) if binary else slice(None)
    rows = [
        {
            "class": "all",
            **_counts(truth, known, decided, columns),
            **bounded_value("auc", overall, y, p, **options),
            **common,
        }
    ]
    for k, name in enumerate([] if binary else class_names):
        area = bounded_value("auc", lambda a, b, k=k: roc_per_class(a, b)[k], y, p, **options)
        rows.append({"class": str(name), **_counts(truth, known, decided, slice(k, k + 1)), **area, **common})
    return ClassifierReport(rows, _confusion(y, truth, known, decided, class_names), title, noun)


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
