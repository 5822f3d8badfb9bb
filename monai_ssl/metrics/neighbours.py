# SPDX-License-Identifier: Apache-2.0
"""Weighted nearest-neighbour classification in feature space, a probe without training.

Wu, Xiong, Yu, Lin, *Unsupervised Feature Learning via Non-Parametric Instance Discrimination*, CVPR 2018, section 3.4:
cosine similarity ``s``, weight ``exp(s / t)`` with ``t = 0.07`` for each of the ``k`` nearest labelled samples.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_ssl.metrics.roc import area_under_roc

__all__ = ["knn_auc", "knn_scores"]


def knn_scores(
    queries: Tensor,
    bank: Tensor,
    labels: Tensor,
    *,
    num_classes: int | None = None,
    k: int = 20,
    temperature: float = 0.07,
    query_groups: Tensor | None = None,
    bank_groups: Tensor | None = None,
    chunk_size: int = 1024,
) -> Tensor:
    """Class scores of each query from the labels of its ``k`` nearest samples in the bank.

    Args:
        queries: ``(M, D)`` features, on the bank's device.
        bank: ``(N, D)`` features.
        labels: of the bank. Either ``(N,)`` integers ``0 .. C-1`` with -1 for "unlabelled" (such a sample is no
            neighbour), or ``(N, C)`` with 0, 1 and -1 or NaN for "unknown" (several findings a sample; a sample of
            which nothing is known is no neighbour).
        num_classes: ``C``, by default the highest label plus one; for ``(N,)`` labels only.
        k: number of neighbours; all samples are used if there are fewer.
        temperature: ``t``.
        query_groups: ``(M,)`` integers (patients, say). A neighbour of the query's own group does not count.
        bank_groups: ``(N,)`` integers, needed together with ``query_groups``.
        chunk_size: queries compared with the bank at a time, bounds memory to ``chunk_size * N`` numbers.

    Returns:
        ``(M, C)`` float32 in ``[0, 1]``; rows sum to 1 for ``(N,)`` labels. Where no neighbour tells anything, the
        frequency of the class in the bank.

    Raises:
        ValueError: if shapes do not fit, no sample of the bank is labelled, or a number is out of its range.
    """
    if queries.ndim != 2 or bank.ndim != 2 or queries.shape[1] != bank.shape[1]:
        raise ValueError(
            f"queries (M, D) and bank (N, D) do not fit together: {tuple(queries.shape)} and {tuple(bank.shape)}"
        )
    if k < 1 or not temperature > 0:
        raise ValueError(f"k must be at least 1 and temperature positive, got {k} and {temperature}")
    if (query_groups is None) != (bank_groups is None):
        raise ValueError("query_groups and bank_groups belong together: give both or none")
    targets, known = labels_as_targets(labels.to(bank.device), len(bank), num_classes)

    useful = known.any(dim=1)
    if not useful.any():
        raise ValueError("no sample of the bank is labelled")
    bank, targets, known = F.normalize(bank[useful].float(), dim=1), targets[useful], known[useful]
    if bank_groups is not None:
        query_groups, bank_groups = query_groups.to(bank.device), bank_groups.to(bank.device)[useful]
    frequency = (targets * known).sum(dim=0) / known.sum(dim=0).clamp(min=1)  # (C,)
    k = min(k, len(bank))

    scores = []
    for start in range(0, len(queries), chunk_size):
        rows = slice(start, start + chunk_size)
        similarity = F.normalize(queries[rows].float(), dim=1) @ bank.T  # (m, N)
        if bank_groups is not None:
            own = query_groups[rows, None] == bank_groups[None, :]
            similarity.masked_fill_(own, -torch.inf)
        nearest, index = similarity.topk(k, dim=1)  # (m, k)
        best = nearest[:, :1].nan_to_num(neginf=0.0)  # common factor exp(-best / t): the ratio below is the same
        weight = ((nearest - best) / temperature).exp()[..., None] * known[index]  # (m, k, C)
        total = weight.sum(dim=1)
        mean = (weight * targets[index]).sum(dim=1) / total.clamp(min=torch.finfo(total.dtype).tiny)
        scores.append(torch.where(total > 0, mean, frequency))
    return torch.cat(scores) if scores else frequency.new_zeros((0, len(frequency)))


def knn_auc(
    queries: Tensor,
    query_labels: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    *,
    average: str = "macro",
    undefined: str = "raise",
    **options,
) -> float:
    """Area under the ROC curve of :func:`knn_scores` on labelled queries.

    Args:
        queries: ``(M, D)`` features.
        query_labels: as ``bank_labels``; -1 (or NaN) is left out.
        bank: ``(N, D)`` features.
        bank_labels: ``(N,)`` classes or ``(N, C)`` findings, see :func:`knn_scores`.
        average: ``macro`` or ``weighted``, see :func:`~monai_ssl.metrics.area_under_roc`.
        undefined: ``raise`` or ``warn`` when a class is missing from the queries, see there.
        options: further arguments of :func:`knn_scores`.

    Returns:
        The area; two classes are scored as one binary question.

    Raises:
        ValueError: see :func:`knn_scores` and :func:`~monai_ssl.metrics.area_under_roc`.
    """
    if bank_labels.ndim == 1 and "num_classes" not in options:
        options["num_classes"] = int(max(bank_labels.max(), query_labels.max())) + 1
    scores = knn_scores(queries, bank, bank_labels, **options)
    return area_under_roc(query_labels.cpu().numpy(), scores.cpu().numpy(), average=average, undefined=undefined)


def labels_as_targets(labels: Tensor, rows: int, num_classes: int | None) -> tuple[Tensor, Tensor]:
    """Labels as (N, C) float targets in {0, 1} and (N, C) float "known" in {0, 1}."""
    if labels.ndim not in (1, 2) or len(labels) != rows:
        raise ValueError(f"labels must have shape ({rows},) or ({rows}, C), got {tuple(labels.shape)}")
    if labels.ndim == 1:
        if labels.is_floating_point():
            raise ValueError("labels of shape (N,) must be integers 0 .. C-1, or -1 for unlabelled")
        highest = int(labels.max()) if rows else -1
        num_classes = num_classes or highest + 1
        if highest >= num_classes or (rows and int(labels.min()) < -1):
            raise ValueError(f"labels must lie in -1 .. {num_classes - 1}, got {int(labels.min())} .. {highest}")
        known = (labels >= 0).float()[:, None].expand(rows, num_classes)
        return F.one_hot(labels.long().clamp(min=0), max(num_classes, 1)).float(), known
    values = labels.float().nan_to_num(nan=-1.0)
    if not ((values == 0) | (values == 1) | (values == -1)).all():
        raise ValueError("labels of shape (N, C) must be 0, 1, or -1 or NaN for unknown")
    return values.clamp(min=0), (values >= 0).float()
