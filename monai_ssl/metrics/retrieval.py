# SPDX-License-Identifier: Apache-2.0
"""Precision and recall among the first ``k`` retrieved, one value per query (so that intervals can be made of them)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["precision_at_k", "recall_at_k"]


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


def _relevant_in_first(similarity: Tensor, relevant: Tensor, k: int) -> Tensor:
    """Expected number of relevant items among the first k: (Q, N), (Q, N) -> (Q,)."""
    if similarity.ndim != 2 or relevant.shape != similarity.shape or relevant.dtype != torch.bool:
        raise ValueError(
            f"similarity (Q, N) and boolean relevant (Q, N) do not fit together: {tuple(similarity.shape)} and "
            f"{tuple(relevant.shape)} {relevant.dtype}"
        )
    if not 1 <= k <= similarity.shape[1]:
        raise ValueError(f"k must lie between 1 and the number of items, {similarity.shape[1]}; got {k}")
    if similarity.isnan().any():
        raise ValueError("similarity holds NaN")
    last = similarity.topk(k, dim=1).values[:, -1:]  # (Q, 1)
    above, tied = similarity > last, similarity == last
    places = k - above.sum(dim=1)  # left for the tied items
    return (above & relevant).sum(dim=1) + places * (tied & relevant).sum(dim=1) / tied.sum(dim=1)
