# SPDX-License-Identifier: Apache-2.0
"""Read class names or findings from the columns of a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from monai_ssl.data.tables import nearest_name

__all__ = ["TASKS", "read_targets", "settle_task"]

TASKS = ("binary", "multiclass", "multilabel")
_SEPARATOR = "|"


def read_targets(
    table: pa.Table, label_column: str | Sequence[str], task: str, classes: Sequence[str] | None, kept: np.ndarray
) -> tuple[list[str], np.ndarray]:
    """Read the targets of all rows; see :func:`monai_ssl.evaluation.classification_labels` for the arguments.

    Args:
        table: has the columns.
        label_column: one column of classes, or several of findings.
        task: what is asked for, or ``"auto"``.
        classes: names in the order of the outputs, or None.
        kept: ``(M,)`` booleans, the rows that count.

    Returns:
        The K names, and ``(M,)`` classes or ``(M, K)`` findings; -1 is unknown.

    Raises:
        ValueError: an unknown task, a missing class (the nearest name is given), or a value that is no label.
    """
    if task not in ("auto", *TASKS):
        raise ValueError(f"task must be auto, {', '.join(TASKS)}, got {task!r}")
    if isinstance(label_column, str):
        return (_findings_of_text if task == "multilabel" else _competing)(table, label_column, kept, classes)
    columns = list(label_column)
    if task in ("binary", "multiclass"):
        raise ValueError(f"task {task!r} takes one label column, got {len(columns)}; several columns are findings")
    columns = _checked_classes(classes, Counter(columns), "label_column") if classes else columns
    return _findings_of_columns(table, columns, kept)


def settle_task(task: str, findings: bool, names: list[str]) -> str:
    """Return what kind of question it is, given what was asked for and what was found.

    Raises:
        ValueError: a binary question with other than two classes.
    """
    if task == "auto":
        return "multilabel" if findings else "binary" if len(names) == 2 else "multiclass"
    if task == "binary" and len(names) != 2:
        raise ValueError(f"a binary task has two classes, these are {len(names)}: {', '.join(names)}; give classes")
    return task


def _competing(
    table: pa.Table, column: str, kept: np.ndarray, classes: Sequence[str] | None
) -> tuple[list[str], np.ndarray]:
    values = [_as_text(value, column) for value in table[column].to_pylist()]
    present = Counter(value for value, keep in zip(values, kept, strict=True) if keep and value is not None)
    names = _checked_classes(classes, present, f"the column {column!r}") if classes else sorted(present)
    if len(names) < 2:
        raise ValueError(f"the column {column!r} has {len(names)} classes ({', '.join(names)}); two or more are needed")
    number = {name: k for k, name in enumerate(names)}
    return names, np.array([-1 if value is None else number.get(value, -1) for value in values], dtype=np.int64)


def _findings_of_columns(table: pa.Table, columns: list[str], kept: np.ndarray) -> tuple[list[str], np.ndarray]:
    targets = np.full((len(table), len(columns)), -1, dtype=np.int64)
    for k, column in enumerate(columns):
        for row, value in enumerate(table[column].to_pylist()):
            if value is None or not kept[row]:
                continue
            text = _as_text(value, column)
            if text not in ("0", "1", "-1"):
                raise ValueError(
                    f"the column {column!r} holds {text[:40]!r}: columns of findings hold 1, 0, and -1 or nothing for "
                    "unknown; a column of class names goes alone into label_column"
                )
            targets[row, k] = int(text)
    return columns, targets


def _findings_of_text(
    table: pa.Table, column: str, kept: np.ndarray, classes: Sequence[str] | None
) -> tuple[list[str], np.ndarray]:
    values = [_as_text(value, column) for value in table[column].to_pylist()]
    found = [None if value is None else {part.strip() for part in value.split(_SEPARATOR)} - {""} for value in values]
    present = Counter(name for names, keep in zip(found, kept, strict=True) if keep and names for name in names)
    names = _checked_classes(classes, present, f"the column {column!r}") if classes else sorted(present)
    targets = np.array([[-1] * len(names) if f is None else [int(name in f) for name in names] for f in found])
    return names, targets.astype(np.int64)


def _as_text(value: Any, column: str) -> str | None:
    if value is None or value != value:
        return None
    if isinstance(value, (bool, int)) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    if isinstance(value, str):
        return value.strip() or None
    raise ValueError(f"the column {column!r} holds {value!r}; labels are text or whole numbers")


def _checked_classes(classes: Sequence[str], present: Counter, where: str) -> list[str]:
    names = [str(name) for name in classes]
    if len(set(names)) < len(names):
        raise ValueError(f"a class is named twice: {', '.join(names)}")
    for name in names:
        if name not in present:
            near = nearest_name(name, present)
            hint = f"; did you mean {near!r}?" if near else ""
            some = ", ".join(f"{value} ({count})" for value, count in present.most_common(12))
            raise ValueError(f"{where} has no class {name!r}{hint} It has: {some or 'nothing'}")
    return names
