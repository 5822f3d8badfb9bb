# SPDX-License-Identifier: Apache-2.0
"""Probes: what a frozen encoder's features tell about labels, by a linear layer or by the nearest neighbours."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.special import log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from torch import nn

from monai_ssl.metrics import knn_scores

__all__ = ["LinearProbe", "knn_probe", "linear_probe", "regularisation_rule"]

C_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1e0, 1e1)
_FOLDS = 5
_SMALL = 100  # with fewer labels the folds are drawn three times
_FLOOR = 1e-4  # least deviation of a feature, as a share of the mean deviation: dead features stay small


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier on standardised features.

    Attributes:
        weight: ``(K, F)``, acts on ``(x - mean) / std``. K = number of classes; two for a binary question.
        bias: ``(K,)``.
        mean: ``(F,)`` of the reference features.
        std: ``(F,)`` of the reference features.
        multilabel: each of the K outputs is a question of its own (sigmoid); else they compete (softmax).
        c: inverse strength of the regularisation.
        c_source: ``"given"``, ``"cross-validation"`` or ``"rule"``.
        losses: mean log loss in the cross-validation for each C that was tried.
    """

    weight: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    multilabel: bool
    c: float
    c_source: str
    losses: dict[float, float] = field(default_factory=dict)

    def logits(self, features: np.ndarray | torch.Tensor) -> np.ndarray:
        """Return ``(N, K)`` logits of features ``(N, F)``."""
        x = _matrix(features)
        if x.shape[1] != len(self.mean):
            raise ValueError(f"the probe was fitted to {len(self.mean)} features, these are {x.shape[1]}")
        return ((x - self.mean) / self.std) @ self.weight.T + self.bias

    def probabilities(self, features: np.ndarray | torch.Tensor) -> np.ndarray:
        """Return ``(N, K)`` probabilities; rows sum to 1 unless the probe is multi-label."""
        z = self.logits(features)
        if self.multilabel:
            return 0.5 * (1 + np.tanh(z / 2))
        z = np.exp(z - z.max(axis=1, keepdims=True))
        return z / z.sum(axis=1, keepdims=True)

    def as_linear_layer(self) -> nn.Linear:
        """Return the probe as a layer on the plain features, with the standardisation folded in.

        ``W' = W / std`` and ``b' = b - W' mean``: a MONAI classifier can carry it as its last layer.
        """
        weight = self.weight / self.std
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weight))
            layer.bias.copy_(torch.from_numpy(self.bias - weight @ self.mean))
        return layer


def linear_probe(
    features: np.ndarray | torch.Tensor,
    labels: np.ndarray | torch.Tensor,
    *,
    reference: np.ndarray | torch.Tensor | None = None,
    groups: Sequence | None = None,
    c: float | None = None,
    grid: Sequence[float] = C_GRID,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    balanced: bool = False,
    seed: int = 0,
) -> LinearProbe:
    """Fit a logistic regression with an L2 penalty to frozen features.

    C is chosen by the log loss of a stratified 5-fold cross-validation within the labelled samples (patients stay
    together when ``groups`` are given). The log loss is used because the choice by AUC wavers: on 1,383 chest
    radiographs and features of an untrained ResNet-18 with 70 labels it cost 0.03 of the test AUC. Where a class has
    fewer members than there are folds, :func:`regularisation_rule` is used.

    Args:
        features: ``(N, F)`` of the labelled samples.
        labels: ``(N,)`` integers ``0 .. K-1`` with -1 for "unlabelled"; or ``(N, K)`` of 0 and 1, -1 or NaN for
            "unknown": several findings a sample.
        reference: ``(M, F)`` features whose mean and deviation standardise all: give those of the unlabelled pool,
            which serves much better than a handful of labelled samples. None: ``features``.
        groups: ``(N,)`` patients.
        c: inverse strength of the regularisation (scikit-learn's C); None chooses it.
        grid: the values to choose from.
        num_classes: K, by default the highest label plus one; for ``(N,)`` labels only.
        class_names: for messages.
        balanced: weigh the classes by their inverse frequency.
        seed: of the folds.

    Returns:
        The fitted probe.

    Raises:
        ValueError: shapes do not fit, a feature is not finite, or a class has no sample (for findings: no positive or
            no negative one).
    """
    x, (y, count, multilabel) = _matrix(features), _targets(labels, num_classes)
    if len(x) != len(y) or (groups is not None and len(groups) != len(y)):
        raise ValueError(f"features {x.shape}, labels {y.shape} and groups must have the same number of samples")
    base = x if reference is None else _matrix(reference)
    if base.shape[1] != x.shape[1]:
        raise ValueError(f"the reference has {base.shape[1]} features, the labelled samples {x.shape[1]}")
    mean, std = base.mean(axis=0), base.std(axis=0)
    std = np.maximum(std, max(_FLOOR * std.mean(), 1e-12))
    questions = _questions((x - mean) / std, y, count, multilabel, None if groups is None else np.asarray(groups))
    _refuse_missing(questions, multilabel, class_names)

    losses: dict[float, float] = {}
    source = "given"
    if c is None:
        fewest = min(_fewest(q.y, q.groups) for q in questions)
        if fewest < _FOLDS:
            c, source = regularisation_rule(min(len(q.y) for q in questions)), "rule"
        else:
            tried = [_cv_losses(q, sorted(grid), balanced, seed) for q in questions]
            losses = {value: float(np.mean([one[value] for one in tried])) for value in grid}
            c, source = min(losses, key=losses.__getitem__), "cross-validation"
    fitted = [_fit(q.x, q.y, c, balanced) for q in questions]
    weight, bias = (np.concatenate(parts) for parts in zip(*map(_softmax_form, fitted), strict=True))
    if multilabel:  # two softmax logits (-z/2, z/2) make one sigmoid logit z
        weight, bias = 2 * weight[1::2], 2 * bias[1::2]
    return LinearProbe(weight, bias, mean, std, multilabel, float(c), source, losses)


def regularisation_rule(num_labels: int) -> float:
    """Return C for so few labels that a cross-validation tells nothing.

    ``1e-4 (n / 14)^2`` up to 140 labels, ``1e-2 n / 140`` above, within 1e-4 and 1e-1: a line through the best values
    measured at 14, 140 and 1,400 labels with the features of pretrained encoders (three classes, ResNet-18).

    >>> regularisation_rule(10), round(regularisation_rule(140), 6), regularisation_rule(5000)
    (0.0001, 0.01, 0.1)
    """
    n = num_labels
    c = 1e-4 * (n / 14) ** 2 if n <= 140 else 1e-2 * n / 140
    return float(np.clip(c, 1e-4, 1e-1))


def knn_probe(
    features: np.ndarray | torch.Tensor,
    labels: np.ndarray | torch.Tensor,
    queries: np.ndarray | torch.Tensor,
    *,
    reference: np.ndarray | torch.Tensor | None = None,
    num_classes: int | None = None,
    k: int = 20,
    temperature: float = 0.07,
) -> np.ndarray:
    """Class scores of the queries from their nearest labelled samples; see :func:`monai_ssl.metrics.knn_scores`.

    Args:
        features: ``(N, F)`` of the labelled samples.
        labels: as for :func:`linear_probe`.
        queries: ``(M, F)``.
        reference: features whose mean is subtracted first, so that the cosine compares what differs. None: nothing is.
        num_classes: as for :func:`linear_probe`.
        k: number of neighbours.
        temperature: of the weights.

    Returns:
        ``(M, K)`` scores in [0, 1].
    """
    offset = 0.0 if reference is None else _matrix(reference).mean(axis=0)
    bank, asked = (torch.from_numpy(_matrix(part) - offset).float() for part in (features, queries))
    targets = torch.as_tensor(np.asarray(labels))
    return knn_scores(asked, bank, targets, num_classes=num_classes, k=k, temperature=temperature).numpy()


@dataclass
class _Question:
    """One regression: standardised features, classes, patients, and what the classes are for messages."""

    x: np.ndarray
    y: np.ndarray
    groups: np.ndarray | None
    number: int
    num_classes: int


def _matrix(values: np.ndarray | torch.Tensor) -> np.ndarray:
    x = np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values, dtype=np.float64)
    if x.ndim != 2 or not len(x):
        raise ValueError(f"features must have shape (N, F) with at least one row, got {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError("features hold NaN or infinite values")
    return x


def _targets(labels: np.ndarray | torch.Tensor, num_classes: int | None) -> tuple[np.ndarray, int, bool]:
    """Labels as integers with -1 for unknown, the number of classes, and whether they are findings (N, K)."""
    y = np.asarray(labels.cpu() if isinstance(labels, torch.Tensor) else labels)
    if y.dtype.kind not in "biuf" or y.ndim not in (1, 2) or not len(y):
        raise ValueError(f"labels must be numbers of shape (N,) or (N, K), got {y.dtype} {y.shape}")
    y = np.nan_to_num(y.astype(np.float64), nan=-1).astype(np.int64)
    multilabel = y.ndim == 2
    count = y.shape[1] if multilabel else num_classes or max(int(y.max()) + 1, 2)
    highest = 1 if multilabel else count - 1
    if highest < 1:
        raise ValueError(f"a linear probe needs at least two classes, num_classes is {count}")
    if y.min() < -1 or y.max() > highest:
        raise ValueError(f"labels must lie in 0 .. {highest}, or be -1 for unknown; found {y.min()} .. {y.max()}")
    return y, count, multilabel


def _questions(
    x: np.ndarray, y: np.ndarray, count: int, multilabel: bool, groups: np.ndarray | None
) -> list[_Question]:
    """One regression for competing classes (K of them), one for each column of findings (2 classes each)."""
    made = []
    for number, column in enumerate(y.T if multilabel else [y]):
        known = column >= 0
        own_groups = None if groups is None else groups[known]
        made.append(_Question(x[known], column[known], own_groups, number, 2 if multilabel else count))
    return made


def _refuse_missing(questions: list[_Question], multilabel: bool, names: Sequence[str] | None) -> None:
    for q in questions:
        for missing in sorted(set(range(q.num_classes)) - set(q.y.tolist())):
            if multilabel:
                name = names[q.number] if names else q.number
                raise ValueError(f"finding {name} has no {('negative', 'positive')[missing]} labelled sample")
            raise ValueError(f"class {names[missing] if names else missing} has no labelled sample")


def _fewest(y: np.ndarray, groups: np.ndarray | None) -> int:
    """Samples of the rarest class; patients instead, where they are known."""
    return min(
        int((y == label).sum()) if groups is None else len(np.unique(groups[y == label])) for label in np.unique(y)
    )


def _cv_losses(q: _Question, grid: Sequence[float], balanced: bool, seed: int) -> dict[float, float]:
    """Mean log loss of samples left out, over folds, for each C; each fit starts from the one with the next lower C."""
    totals, count = dict.fromkeys(grid, 0.0), 0
    x = _rotated(q.x)
    for repeat in range(3 if len(q.y) < _SMALL else 1):
        kind = StratifiedKFold if q.groups is None else StratifiedGroupKFold
        folds = kind(_FOLDS, shuffle=True, random_state=seed + repeat)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # groups of unequal size: folds are not all alike
            splits = list(folds.split(x, q.y, q.groups))
        for fitted_on, left_out in splits:
            if len(np.unique(q.y[fitted_on])) < q.num_classes or not len(left_out):
                continue
            model = _regression(grid[0], balanced).set_params(warm_start=True)
            for c in grid:
                weight, bias = _softmax_form(_fitted(model.set_params(C=c), x[fitted_on], q.y[fitted_on]))
                p = log_softmax(x[left_out] @ weight.T + bias, axis=1)
                totals[c] -= p[np.arange(len(left_out)), q.y[left_out]].sum()
            count += len(left_out)
    return {c: total / count if count else math.inf for c, total in totals.items()}


def _rotated(x: np.ndarray) -> np.ndarray:
    """The samples (N, F) in their own coordinates (N, N) where those are fewer: an L2 penalty does not see the turn."""
    if len(x) >= x.shape[1]:
        return x
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    return u * s


def _fit(x: np.ndarray, y: np.ndarray, c: float, balanced: bool) -> LogisticRegression:
    return _fitted(_regression(c, balanced), x, y)


def _regression(c: float, balanced: bool) -> LogisticRegression:
    return LogisticRegression(C=c, max_iter=300, class_weight="balanced" if balanced else None)


def _fitted(model: LogisticRegression, x: np.ndarray, y: np.ndarray) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # weak penalties in the grid need not converge to lose
        return model.fit(x, y)


def _softmax_form(model: LogisticRegression) -> tuple[np.ndarray, np.ndarray]:
    """Weights (K, F) and biases (K,) for a softmax; scikit-learn has one row only for two classes."""
    if len(model.coef_) > 1:
        return model.coef_, model.intercept_
    return np.concatenate([-model.coef_, model.coef_]) / 2, np.concatenate([-model.intercept_, model.intercept_]) / 2
