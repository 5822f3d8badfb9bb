# SPDX-License-Identifier: Apache-2.0
"""Precision, recall and hits among the first ``k`` retrieved, one value per query (so that intervals can be made)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["first_relevant_rank", "hit_rate_at_k", "precision_at_k", "recall_at_k"]


def precision_at_k(similarity: Tensor, relevant: Tensor, k: int) -> Tensor:
    """Share of relevant items among the ``k`` most similar.

    Items as similar as the ``k``-th count with their expected value over all ways of breaking the tie, so the order of
    the items never matters (an encoder that has collapsed scores exactly chance).

    Args:
        similarity: ``(Q, N)``, higher is closer. Take an item out for a query (itself, the same patient) by ``-inf``
            here and False in ``relevant``.
        relevant: boolean ``(Q, N)``, for labels ``query_labels[:, None] == item_labels[None, :]``.
        k: from 1 to ``N``.

    Returns:
        ``(Q,)`` float32 in ``[0, 1]``; the metric is its mean.

    Raises:
        ValueError: if shapes do not fit, a similarity is NaN, or ``k`` is out of its range.

    Example:
        >>> precision_at_k(torch.tensor([[0.9, 0.5, 0.1]]), torch.tensor([[True, False, True]]), k=2)
        tensor([0.5000])
    """
    return _relevant_in_first(similarity, relevant, k) / k


def recall_at_k(similarity: Tensor, relevant: Tensor, k: int) -> Tensor:
    """Share of all relevant items that is among the ``k`` most similar.

    With one relevant item a query (image and its report) this is the share of hits.

    Args:
        similarity: ``(Q, N)``, see :func:`precision_at_k`.
        relevant: boolean ``(Q, N)``.
        k: from 1 to ``N``.

    Returns:
        ``(Q,)`` float32 in ``[0, 1]``, NaN for a query without any relevant item.

    Raises:
        ValueError: see :func:`precision_at_k`.
    """
    return _relevant_in_first(similarity, relevant, k) / relevant.sum(dim=1)


def hit_rate_at_k(similarity: Tensor, relevant: Tensor, k: int) -> Tensor:
    """Whether any relevant item is among the ``k`` most similar; image-text papers call its mean "Recall@K".

    Args:
        similarity: ``(Q, N)``, see :func:`precision_at_k`; ties count their probability of a hit.
        relevant: boolean ``(Q, N)``.
        k: from 1 to ``N``.

    Returns:
        ``(Q,)`` float32 in ``[0, 1]``, NaN for a query without any relevant item.

    Raises:
        ValueError: see :func:`precision_at_k`.

    Example:
        >>> hit_rate_at_k(torch.tensor([[0.9, 0.5, 0.1]]), torch.tensor([[False, True, True]]), k=2)
        tensor([1.])
    """
    above, tied, places = _first_places(similarity, relevant, k)
    # Of t tied items r are relevant and p get a place: no hit with probability C(t - r, p) / C(t, p).
    t, r, p = (x.double() for x in (tied.sum(dim=1), (tied & relevant).sum(dim=1), places))
    free = (t - r - p).clamp(min=0)
    log_miss = torch.lgamma(t - r + 1) - torch.lgamma(free + 1) - torch.lgamma(t + 1) + torch.lgamma(t - p + 1)
    miss = torch.where(t - r >= p, log_miss.exp(), 0.0)
    hit = torch.where((above & relevant).any(dim=1), 1.0, 1.0 - miss)
    return torch.where(relevant.any(dim=1), hit, torch.nan).float()


def first_relevant_rank(similarity: Tensor, relevant: Tensor) -> Tensor:
    """Rank of the most similar relevant item, from 1; the median over queries is the usual "median rank".

    Args:
        similarity: ``(Q, N)``, see :func:`precision_at_k`; among ties it is the expected rank.
        relevant: boolean ``(Q, N)``.

    Returns:
        ``(Q,)`` float32 from 1 to ``N``, NaN for a query without any relevant item.

    Raises:
        ValueError: see :func:`precision_at_k`.

    Example:
        >>> first_relevant_rank(torch.tensor([[0.9, 0.5, 0.1]]), torch.tensor([[False, True, True]]))
        tensor([2.])
    """
    _check(similarity, relevant)
    best = similarity.masked_fill(~relevant, -torch.inf).amax(dim=1, keepdim=True)  # (Q, 1)
    tied = similarity == best
    rank = (similarity > best).sum(dim=1) + (tied.sum(dim=1) + 1) / ((tied & relevant).sum(dim=1) + 1)
    return torch.where(relevant.any(dim=1), rank, torch.nan)


def _relevant_in_first(similarity: Tensor, relevant: Tensor, k: int) -> Tensor:
    """Expected number of relevant items among the first k: (Q, N), (Q, N) -> (Q,)."""
    above, tied, places = _first_places(similarity, relevant, k)
    return (above & relevant).sum(dim=1) + places * (tied & relevant).sum(dim=1) / tied.sum(dim=1)


def _first_places(similarity: Tensor, relevant: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Items surely among the first k (Q, N), items tied for the rest (Q, N), and how many places are left (Q,)."""
    _check(similarity, relevant)
    if not 1 <= k <= similarity.shape[1]:
        raise ValueError(f"k must lie between 1 and the number of items, {similarity.shape[1]}; got {k}")
    last = similarity.topk(k, dim=1).values[:, -1:]  # (Q, 1)
    above = similarity > last
    return above, similarity == last, k - above.sum(dim=1)


def _check(similarity: Tensor, relevant: Tensor) -> None:
    if similarity.ndim != 2 or relevant.shape != similarity.shape or relevant.dtype != torch.bool:
        raise ValueError(
            f"similarity (Q, N) and boolean relevant (Q, N) do not fit together: {tuple(similarity.shape)} and "
            f"{tuple(relevant.shape)} {relevant.dtype}"
        )
    if similarity.isnan().any():
        raise ValueError("similarity holds NaN")
