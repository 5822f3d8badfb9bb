# SPDX-License-Identifier: Apache-2.0
"""Figures of groups of patients: by sex, age, view, source or any other column, where the groups are large enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from monai_ssl.evaluation.study.results import Predictions
from monai_ssl.metrics import area_under_roc, bootstrap_interval

__all__ = ["group_values", "subgroup_rows"]

_AGES = (18, 40, 60, 80)  # years; a child, and four bands of adults
_MOST_GROUPS = 12


def group_values(column: pa.ChunkedArray, name: str) -> np.ndarray:
    """Return the group of each row: text as it is, ages as bands, what is missing as ``"unknown"``.

    Numbers in a column whose name has "age" as a word are years and become ``"0-17"``, ``"18-39"``, ``"40-59"``,
    ``"60-79"`` or ``"80+"``. DICOM's form (PS3.5 section 6.2, value representation AS: ``"045Y"``) is understood.

    >>> group_values(pa.chunked_array([["045Y", "7", None]]), "age").tolist()
    ['40-59', '0-17', 'unknown']
    """
    values = column.to_pylist()
    if "age" not in name.lower().split("_"):
        return np.array(["unknown" if value in (None, "") else str(value) for value in values])
    return np.array([_age_band(value) for value in values])


def _age_band(value: Any) -> str:
    text = str(value).strip().upper() if value is not None else ""
    years = {"Y": 1.0, "M": 1 / 12, "W": 1 / 52.18, "D": 1 / 365.25}
    factor = years.get(text[-1:])
    try:
        age = float(text[:-1]) * factor if factor else float(text)
    except ValueError:
        return "unknown"
    if not 0 <= age < 130:
        return "unknown"
    below = [limit for limit in _AGES if age >= limit]
    if not below:
        return f"0-{_AGES[0] - 1}"
    place = _AGES.index(below[-1])
    return f"{_AGES[place]}+" if place + 1 == len(_AGES) else f"{_AGES[place]}-{_AGES[place + 1] - 1}"


def subgroup_rows(
    table: pa.Table,
    predictions: Sequence[Predictions],
    columns: Sequence[str],
    *,
    min_patients: int = 20,
    resamples: int = 500,
    confidence: float = 0.95,
) -> list[dict[str, Any]]:
    """Score each group of the test images.

    Args:
        table: of the store.
        predictions: of one classifier, one for each seed.
        columns: of the table; one that is not there gives a row that says so.
        min_patients: a group with fewer patients, or with fewer than two with or without some class, gets no figures,
            and its size is not told: it might be recognised.
        resamples: of the bootstrap by patient.
        confidence: of the intervals.

    Returns:
        Rows with ``column``, ``group``, ``images``, ``patients``, ``auc`` (mean over the seeds), ``auc_low``,
        ``auc_high`` and ``note``.
    """
    first, rows = predictions[0], []
    for column in columns:
        if column not in table.column_names:
            rows.append({**_row(column, ""), "note": "the table of images has no such column"})
            continue
        groups = group_values(table[column], column)[first.rows]
        names = sorted(set(groups.tolist()))
        if len(names) > _MOST_GROUPS:
            rows.append({**_row(column, ""), "note": f"more than {_MOST_GROUPS} groups: not a column of groups"})
            continue
        for name in names:
            rows.append(_row(column, name) | _figures(predictions, groups == name, min_patients, resamples, confidence))
    return rows


def _row(column: str, group: str) -> dict[str, Any]:
    empty = dict.fromkeys(("images", "patients", "auc", "auc_low", "auc_high"))
    return {"column": column, "group": group, **empty, "note": ""}


def _figures(
    predictions: Sequence[Predictions], chosen: np.ndarray, min_patients: int, resamples: int, confidence: float
) -> dict[str, Any]:
    first = predictions[0]
    patients = first.patients[chosen]
    count = len(np.unique(patients))
    if count < max(min_patients, 2):
        return {"note": f"fewer than {max(min_patients, 2)} patients: no figures"}
    y = first.truth[chosen]
    p = np.stack([one.probabilities[chosen] for one in predictions], axis=1)  # (n, seeds, K)

    def area(labels: np.ndarray, scores: np.ndarray) -> float:
        return float(np.mean([area_under_roc(labels, scores[:, i]) for i in range(scores.shape[1])]))

    sizes = {"images": int(chosen.sum()), "patients": count}
    try:
        found = bootstrap_interval(area, y, p, groups=patients, n=resamples, confidence=confidence)
    except ValueError:
        return {**sizes, "note": "too few patients with or without some class: not defined"}
    return {**sizes, "auc": found.value, "auc_low": found.low, "auc_high": found.high}
