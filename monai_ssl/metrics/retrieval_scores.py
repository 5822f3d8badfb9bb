# SPDX-License-Identifier: Apache-2.0
"""Retrieval with intervals: a measure over many queries, against chance and, paired, against a second model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from monai_ssl.metrics.intervals import BootstrapInterval, bootstrap_difference, bootstrap_interval
from monai_ssl.metrics.retrieval import hit_rate_at_k, precision_at_k, recall_at_k

__all__ = ["RETRIEVAL_MEASURES", "RetrievalScore", "chance_at_k", "retrieval_score"]

RETRIEVAL_MEASURES: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "precision": precision_at_k,
    "recall": recall_at_k,
    "hit_rate": hit_rate_at_k,
}
"""Measures by name; each gives one value a query."""


@dataclass(frozen=True)
class RetrievalScore:
    """A measure over all queries.

    Attributes:
        measure: ``"precision"``, ``"recall"`` or ``"hit_rate"``.
        k: how many items are looked at.
        value: mean over the queries.
        chance: its expectation if the items came in random order.
        over_chance: ``value`` minus chance, query by query, with p-value.
        other: the mean of the second model, or None.
        over_other: ``value`` minus the second model's on the same queries, with p-value, or None.
        queries: how many queries count.
        left_out: queries without any relevant item.
        groups: independent units that were resampled.
    """

    measure: str
    k: int
    value: BootstrapInterval
    chance: float
    over_chance: BootstrapInterval
    other: BootstrapInterval | None
    over_other: BootstrapInterval | None
    queries: int
    left_out: int
    groups: int

    def __str__(self) -> str:
        """Readable form, such as ``precision@10 0.429 (0.391 to 0.466), chance 0.125``."""
        return f"{self.measure}@{self.k} {self.value}, chance {self.chance:.3f}"


def chance_at_k(similarity: Tensor, relevant: Tensor, k: int, measure: str = "precision") -> Tensor:
    """Expected value of a measure for each query if the items came in random order.

    Args:
        similarity: ``(Q, N)``; only where it is ``-inf`` matters: these items are taken out and come last.
        relevant: boolean ``(Q, N)``.
        k: from 1 to ``N``.
        measure: key of :data:`RETRIEVAL_MEASURES`.

    Returns:
        ``(Q,)`` float32.

    Raises:
        ValueError: see :func:`precision_at_k`; or an unknown measure.

    Example:
        >>> chance_at_k(torch.rand(1, 4), torch.tensor([[True, False, False, False]]), k=2)
        tensor([0.2500])
    """
    alike = torch.where(similarity == -torch.inf, -torch.inf, 0.0)
    return _measure(measure)(alike, relevant, k)


def retrieval_score(
    similarity: Tensor,
    relevant: Tensor,
    k: int,
    measure: str = "precision",
    *,
    other: Tensor | None = None,
    groups: Sequence | np.ndarray | None = None,
    item_groups: Sequence | np.ndarray | None = None,
    n: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> RetrievalScore:
    """Score the ranking of every query, with bootstrap intervals over groups of queries, or of items.

    What is resampled is the queries, and the items are taken as they are; with ``item_groups`` it is the other way
    round. That is for sentences that search among images: their rankings may be much alike, so that many sentences say
    no more than one, and chance is in the images. Queries without any relevant item cannot be answered: they are left
    out, and counted.

    Args:
        similarity: ``(Q, N)``, higher is closer, see :func:`precision_at_k`.
        relevant: boolean ``(Q, N)``.
        k: from 1 to ``N``.
        measure: key of :data:`RETRIEVAL_MEASURES`.
        other: ``(Q, N)`` of a second model on the same queries and items, for instance an untrained one.
        groups: ``(Q,)`` independent units of the queries, such as patients; whole groups are resampled.
        item_groups: ``(N,)`` independent units of the items; these are resampled instead.
        n: number of resamples.
        confidence: of the intervals.
        seed: of the resampling.

    Raises:
        ValueError: see :func:`precision_at_k` and :func:`bootstrap_interval`; no query has a relevant item; or both
            kinds of groups are given.

    Example:
        >>> labels = torch.arange(40) % 4
        >>> relevant = labels[:8, None] == labels
        >>> print(retrieval_score(relevant.float(), relevant, k=5))
        precision@5 1.000 (1.000 to 1.000), chance 0.250
    """
    score = _measure(measure)
    counts = relevant.any(dim=1)
    if not counts.any():
        raise ValueError(f"none of the {len(relevant)} queries has a relevant item")
    if groups is not None and item_groups is not None:
        raise ValueError("give groups of the queries or of the items, whichever are to be resampled")
    by_item = item_groups is not None
    size, name = (similarity.shape[1], "items") if by_item else (len(similarity), "queries")
    given = item_groups if by_item else groups
    units = np.arange(size) if given is None else np.asarray(given)
    if len(units) != size:
        raise ValueError(f"{len(units)} groups do not fit {size} {name}")
    chance = torch.where(similarity == -torch.inf, -torch.inf, 0.0)
    if by_item:  # samples are the items: a resample is another gallery, in which copies of an item tie
        target = relevant[counts].numpy().T  # (N, Q)
        scores = [None if x is None else x[counts].numpy().T for x in (similarity, chance, other)]

        def metric(relevant: np.ndarray, similarity: np.ndarray) -> float:
            pair = (torch.from_numpy(np.ascontiguousarray(x.T)) for x in (similarity, relevant))
            return float(score(*pair, k).double().nanmean())

    else:  # samples are the queries, each with its own value
        units = units[counts.numpy()]
        target = np.zeros(len(units))
        values = [None if x is None else score(x, relevant, k)[counts] for x in (similarity, chance, other)]
        scores = [None if x is None else x.double().numpy() for x in values]

        def metric(_: np.ndarray, values: np.ndarray) -> float:
            return float(values.mean())

    mine, random, theirs = scores
    options = {"groups": units, "n": n, "confidence": confidence, "seed": seed}
    return RetrievalScore(
        measure,
        k,
        bootstrap_interval(metric, target, mine, **options),
        metric(target, random),
        bootstrap_difference(metric, target, mine, random, **options),
        None if theirs is None else bootstrap_interval(metric, target, theirs, **options),
        None if theirs is None else bootstrap_difference(metric, target, mine, theirs, **options),
        int(counts.sum()),
        int((~counts).sum()),
        len(np.unique(units)),
    )


def _measure(name: str) -> Callable[[Tensor, Tensor, int], Tensor]:
    if name not in RETRIEVAL_MEASURES:
        raise ValueError(f"there is no measure {name!r}; there are {', '.join(RETRIEVAL_MEASURES)}")
    return RETRIEVAL_MEASURES[name]
