# SPDX-License-Identifier: Apache-2.0
"""Retrieval by an image-text model: reports of images, images of reports, and images or sentences of the same class.

Zhang et al., *Contrastive Learning of Medical Visual Representations from Paired Images and Text* (ConVIRT), MLHC 2022,
arXiv 2010.00747, section 4.3: candidates are ranked by the cosine of their vectors with the query's, without any
training on the task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monai_ssl.metrics import (
    RETRIEVAL_MEASURES,
    BootstrapInterval,
    chance_at_k,
    first_relevant_rank,
    retrieval_score,
)

__all__ = ["RetrievalTask", "class_retrieval", "report_retrieval", "score_retrieval"]

FEWEST_UNITS = 10  # for an interval


@dataclass(frozen=True)
class RetrievalTask:
    """Queries, items, and which of the items are right.

    Attributes:
        name: in a few words, ``"image to report"``.
        similarity: ``(Q, N)`` cosines; ``-inf`` where an item is taken out for a query.
        relevant: ``(Q, N)`` booleans.
        measure: what is scored, see :data:`monai_ssl.metrics.RETRIEVAL_MEASURES`.
        ks: how many of the first items are looked at; those beyond the number of items are left out.
        groups: ``(Q,)`` independent units of the queries, or None: each query is one.
        item_groups: ``(N,)`` units of the items, where these are to be resampled instead of the queries.
        unit: what a group is, in a word: ``"patients"``.
        classes: ``(Q,)`` class of each query, for rows by class, or None.
        places: ``(Q,)`` which of the queries that were given these are; None: all of them.
    """

    name: str
    similarity: Tensor
    relevant: Tensor
    measure: str
    ks: tuple[int, ...]
    groups: np.ndarray | None = None
    item_groups: np.ndarray | None = None
    unit: str = "queries"
    classes: np.ndarray | None = None
    places: np.ndarray | None = None

    def first(self, query: int, count: int) -> list[tuple[int, float, bool]]:
        """Return the ``count`` nearest items of a query, those taken out left out: number, cosine, whether right."""
        values, items = self.similarity[query].topk(min(count, self.similarity.shape[1]))
        found = zip(items.tolist(), values.tolist(), strict=True)
        return [(item, value, bool(self.relevant[query, item])) for item, value in found if value > -np.inf]


def report_retrieval(
    images: Tensor,
    reports: Tensor,
    report_of: Sequence[int] | np.ndarray,
    *,
    patients: Sequence | np.ndarray | None = None,
    ks: Sequence[int] = (1, 5, 10),
) -> list[RetrievalTask]:
    """Find the report of each image among all, and an image of each report.

    Several images may share a report (frontal and lateral, or reports of the same words: give those one number, or
    the right answer would count as wrong). A query is answered when one of the right items is among the first k.

    Args:
        images: unit vectors ``(N, D)``.
        reports: unit vectors ``(R, D)``.
        report_of: ``(N,)`` number of each image's report.
        patients: ``(N,)``; they are the units of the intervals. A report counts to the first of its patients.
        ks: first items looked at.

    Returns:
        Two tasks, ``"image to report"`` and ``"report to image"``.

    Raises:
        ValueError: shapes do not fit, or a report has no image.
    """
    owner = np.asarray(report_of)
    _check_vectors(images, reports)
    if owner.shape != (len(images),) or not np.array_equal(np.unique(owner), np.arange(len(reports))):
        raise ValueError(
            f"report_of must give each of {len(images)} images one of {len(reports)} reports, and each report an image"
        )
    similarity = images @ reports.T
    relevant = torch.from_numpy(owner)[:, None] == torch.arange(len(reports))
    units = None if patients is None else np.asarray(patients)
    first_image = np.unique(owner, return_index=True)[1]
    shared = {"measure": "hit_rate", "ks": tuple(ks), "unit": "queries" if units is None else "patients"}
    return [
        RetrievalTask("image to report", similarity, relevant, groups=units, **shared),
        RetrievalTask(
            "report to image",
            similarity.T.contiguous(),
            relevant.T.contiguous(),
            groups=None if units is None else units[first_image],
            **shared,
        ),
    ]


def class_retrieval(
    name: str,
    queries: Tensor,
    items: Tensor,
    query_classes: np.ndarray,
    item_classes: np.ndarray,
    *,
    query_patients: Sequence | np.ndarray | None = None,
    item_patients: Sequence | np.ndarray | None = None,
    ks: Sequence[int] = (5, 10, 100),
    class_names: Sequence[str] | None = None,
) -> RetrievalTask:
    """Find items of a query's class.

    Args:
        name: of the task.
        queries: unit vectors ``(Q, D)`` of images or sentences.
        items: unit vectors ``(N, D)``.
        query_classes: ``(Q,)`` classes; -1 is unknown, and such a query is left out.
        item_classes: ``(N,)`` classes, of which a right item has the query's; or findings ``(N, K)`` of 0 and 1, of
            which a right item has the query's. Items whose class is not known (-1) are taken out.
        query_patients: ``(Q,)``, the units of the intervals; None for sentences.
        item_patients: ``(N,)``: a patient's images are no candidates for that patient's own queries. Give it whenever
            queries and items may share patients; an image would find itself. Of sentences these are the units of the
            intervals.
        ks: first items looked at.
        class_names: for the classes' rows.

    Raises:
        ValueError: shapes do not fit.
    """
    _check_vectors(queries, items)
    asked, labels = np.asarray(query_classes), np.asarray(item_classes)
    if asked.shape != (len(queries),) or labels.shape[:1] != (len(items),) or labels.ndim > 2:
        raise ValueError(
            f"classes {asked.shape} and {labels.shape} do not fit {len(queries)} queries and {len(items)} items"
        )
    queries, kept = queries[asked >= 0], asked[asked >= 0]
    if labels.ndim == 2:
        theirs = labels[:, kept].T  # (Q, N)
        relevant, out = theirs == 1, theirs < 0
    else:
        relevant, out = kept[:, None] == labels, np.broadcast_to(labels < 0, (len(kept), len(labels)))
    units = None if query_patients is None else np.asarray(query_patients)[asked >= 0]
    if units is not None and item_patients is not None:
        out = out | (units[:, None] == np.asarray(item_patients))
    out = torch.from_numpy(np.ascontiguousarray(out))
    return RetrievalTask(
        name,
        (queries @ items.T).masked_fill(out, -torch.inf),
        torch.from_numpy(np.ascontiguousarray(relevant)) & ~out,
        "precision",
        tuple(ks),
        groups=units,
        item_groups=np.asarray(item_patients) if units is None and item_patients is not None else None,
        unit="queries" if units is None and item_patients is None else "patients",
        classes=np.array([class_names[k] if class_names is not None else str(k) for k in kept]),
        places=np.flatnonzero(asked >= 0),
    )


def score_retrieval(task: RetrievalTask, other: RetrievalTask | None = None, **options: Any) -> list[dict[str, Any]]:
    """Score a task: one row for each k over all queries, then, where they have classes, one for each class and k.

    Args:
        task: of the model.
        other: the same task by a second model, for the paired difference.
        options: ``n``, ``confidence`` and ``seed`` of :func:`monai_ssl.metrics.retrieval_score`.

    Returns:
        Rows of plain values: ``task``, ``class``, ``measure``, ``k``, ``value``, ``chance``, ``over_chance``,
        ``other``, ``over_other`` (with ``_low``, ``_high`` and for differences ``_p``), ``queries``, ``left_out``,
        ``items``, ``groups``, ``unit``, ``median_rank``. Of fewer than 10 independent units there are no intervals
        and no p: resampling so few says too little of others.

    Raises:
        ValueError: ``other`` is of other queries or items.
    """
    if other is not None and not torch.equal(task.relevant, other.relevant):
        raise ValueError(f"{task.name}: the second model was asked other queries or had other items")
    ks = [k for k in task.ks if k <= task.similarity.shape[1]] or [task.similarity.shape[1]]
    rows = [_row(task, other, "all", slice(None), k, options) for k in ks]
    for name in dict.fromkeys([] if task.classes is None else task.classes.tolist()):
        rows += [_row(task, other, name, task.classes == name, k, options) for k in ks]
    return rows


def _row(
    task: RetrievalTask, other: RetrievalTask | None, name: str, queries: Any, k: int, options: dict[str, Any]
) -> dict[str, Any]:
    similarity, relevant = task.similarity[queries], task.relevant[queries]
    answerable = relevant.any(dim=1)
    if task.item_groups is not None:
        units, counted = {"item_groups": task.item_groups}, task.item_groups
    else:
        own = (np.arange(len(task.relevant)) if task.groups is None else task.groups)[queries]
        units, counted = {"groups": own}, own[answerable.numpy()]
    ranks = first_relevant_rank(similarity, relevant)[answerable]
    row = {"task": task.name, "class": name, "measure": task.measure, "k": k}
    row |= {"queries": int(answerable.sum()), "left_out": int((~answerable).sum()), "items": similarity.shape[1]}
    row |= {"groups": len(np.unique(counted)), "unit": task.unit}
    row["median_rank"] = float(ranks.median()) if len(ranks) else None
    second = None if other is None else other.similarity[queries]
    if row["groups"] >= FEWEST_UNITS and row["queries"]:
        score = retrieval_score(similarity, relevant, k, task.measure, other=second, **units, **options)
        names = ("value", "chance", "over_chance", "other", "over_other")
        return row | interval_columns({name: getattr(score, name) for name in names})
    measure = RETRIEVAL_MEASURES[task.measure]
    mean = [None if x is None else _mean(measure(x, relevant, k)[answerable]) for x in (similarity, second)]
    return row | plain_columns(*mean, chance=_mean(chance_at_k(similarity, relevant, k, task.measure)[answerable]))


def interval_columns(values: dict[str, BootstrapInterval | float | None]) -> dict[str, float | None]:
    """Columns of a row: each interval as its value and ends, a difference with its p-value, a number as it is."""
    row: dict[str, float | None] = {}
    for name, value in values.items():
        known = isinstance(value, BootstrapInterval)
        row[name] = value.value if known else value
        if name != "chance":
            row |= {f"{name}_low": value.low if known else None, f"{name}_high": value.high if known else None}
        if name.startswith("over_"):
            row[f"{name}_p"] = value.p_value if known else None
    return row


def plain_columns(value: float | None, other: float | None, chance: float | None) -> dict[str, float | None]:
    """Columns of a row that has too few units for intervals."""
    over = [None if value is None or base is None else value - base for base in (chance, other)]
    return interval_columns(
        {"value": value, "chance": chance, "over_chance": over[0], "other": other, "over_other": over[1]}
    )


def _mean(values: Tensor) -> float | None:
    return float(values.double().mean()) if len(values) else None


def _check_vectors(first: Tensor, second: Tensor) -> None:
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"vectors {tuple(first.shape)} and {tuple(second.shape)} are not of one space")
