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
    n: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> RetrievalScore:
    """Score the ranking of every query, with bootstrap intervals over groups of queries.

    The items are taken as they are; what is resampled is the queries. Queries without any relevant item cannot be
    answered: they are left out, and counted.

    Args:
        similarity: ``(Q, N)``, higher is closer, see :func:`precision_at_k`.
        relevant: boolean ``(Q, N)``.
        k: from 1 to ``N``.
        measure: key of :data:`RETRIEVAL_MEASURES`.
        other: ``(Q, N)`` of a second model on the same queries and items, for instance an untrained one.
        groups: ``(Q,)`` independent units of the queries, such as patients; whole groups are resampled.
        n: number of resamples.
        confidence: of the intervals.
        seed: of the resampling.

    Raises:
        ValueError: see :func:`precision_at_k` and :func:`bootstrap_interval`; or no query has a relevant item.

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
    units = np.arange(len(relevant)) if groups is None else np.asarray(groups)
    if len(units) != len(relevant):
        raise ValueError(f"{len(units)} groups do not fit {len(relevant)} queries")
    units = units[counts.numpy()]
    values, chance = score(similarity, relevant, k)[counts], chance_at_k(similarity, relevant, k, measure)[counts]
    options = {"groups": units, "n": n, "confidence": confidence, "seed": seed}
    second = over_other = None
    if other is not None:
        others = score(other, relevant, k)[counts].double().numpy()
        second = bootstrap_interval(np.mean, others, **options)
        over_other = _difference(values, others, options)
    return RetrievalScore(
        measure,
        k,
        bootstrap_interval(np.mean, values.double().numpy(), **options),
        float(chance.double().mean()),
        _difference(values, chance, options),
        second,
        over_other,
        int(counts.sum()),
        int((~counts).sum()),
        len(np.unique(units)),
    )


def _difference(values: Tensor, others: Tensor | np.ndarray, options: dict) -> BootstrapInterval:
    pair = (values.double().numpy(), np.asarray(others, dtype=np.float64))
    return bootstrap_difference(lambda _, value: value.mean(), np.zeros(len(values)), *pair, **options)


def _measure(name: str) -> Callable[[Tensor, Tensor, int], Tensor]:
    if name not in RETRIEVAL_MEASURES:
        raise ValueError(f"there is no measure {name!r}; there are {', '.join(RETRIEVAL_MEASURES)}")
    return RETRIEVAL_MEASURES[name]
