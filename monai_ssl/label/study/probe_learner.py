# SPDX-License-Identifier: Apache-2.0
"""Classification: a linear probe on the frozen encoder's features, from whatever classes are labelled so far."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from monai_ssl.evaluation.probes import linear_probe, regularisation_rule
from monai_ssl.evaluation.study.question import Question
from monai_ssl.evaluation.study.results import numbered
from monai_ssl.evaluation.study.shared_features import shared_features
from monai_ssl.label.entropy import entropy_uncertainty
from monai_ssl.label.epistemic import epistemic_uncertainty
from monai_ssl.label.margin import margin_uncertainty
from monai_ssl.label.study.learner import Learned, repeated_rows
from monai_ssl.metrics import area_under_roc

__all__ = ["PartialProbe", "ProbeLearner"]

Classifier = Callable[[np.ndarray], np.ndarray]


class PartialProbe:
    """Linear probes of labels that grow: a class without a label has probability 0, and one class alone has 1.

    Args:
        reference: ``(M, F)`` features whose mean and deviation standardise all.
        num_classes: K.
        multilabel: the K classes are findings that do not exclude each other.
        c: inverse regularisation; None: see :func:`monai_ssl.evaluation.linear_probe`.
    """

    def __init__(self, reference: np.ndarray, num_classes: int, multilabel: bool = False, c: float | None = None):
        self.reference, self.num_classes, self.multilabel, self.c = reference, num_classes, multilabel, c

    def fit(self, x: np.ndarray, y: np.ndarray, groups: np.ndarray | None = None, seed: int = 0) -> Classifier:
        """Return a function from features (N, F) to probabilities (N, K).

        Args:
            x: ``(n, F)`` features of labelled images.
            y: ``(n,)`` classes, or ``(n, K)`` findings of 0 and 1, -1 for unknown.
            groups: ``(n,)`` patients.
            seed: of the choice of C.
        """
        if not self.multilabel:
            return self._fit_classes(x, y, groups, seed, self.num_classes)
        columns = []
        for column in y.T:
            known = column >= 0
            own = None if groups is None else groups[known]
            columns.append(self._fit_classes(x[known], column[known], own, seed, 2) if known.any() else None)
        return lambda q: np.stack([np.full(len(q), 0.5) if one is None else one(q)[:, 1] for one in columns], axis=1)

    def members(self, x: np.ndarray, y: np.ndarray, num: int, seed: int = 0) -> list[Classifier]:
        """Return ``num`` probes, each of a sample of the labelled images with replacement (within classes).

        Breiman, *Bagging predictors*, Machine Learning 24, 1996; to ask where they disagree is query by bagging (Abe,
        Mamitsuka, ICML 1998).
        """
        rng = np.random.default_rng(seed)
        _, kind = np.unique(y, axis=0, return_inverse=True)
        c = self.c or regularisation_rule(len(x))
        probe = PartialProbe(self.reference, self.num_classes, self.multilabel, c)
        found = []
        for _ in range(num):
            parts = [rng.choice(np.flatnonzero(kind == k), (kind == k).sum()) for k in range(kind.max() + 1)]
            drawn = np.concatenate(parts)
            found.append(probe.fit(x[drawn], y[drawn]))
        return found

    def distributions(self, p: np.ndarray) -> np.ndarray:
        """Return probabilities (..., N, K) as the measures of uncertainty take them: of findings (..., N, K, 2)."""
        return np.stack([1 - p, p], axis=-1) if self.multilabel else p

    def uncertainty(
        self,
        classifier: Classifier,
        x: np.ndarray,
        y: np.ndarray,
        queries: np.ndarray,
        kinds: Collection[str],
        members: int = 10,
        seed: int = 0,
    ) -> dict[str, np.ndarray]:
        """Return how unsure probes of the labelled images are about others.

        Args:
            classifier: of :meth:`fit`.
            x: features of labelled images.
            y: their labels.
            queries: ``(P, F)`` features of the others.
            kinds: some of ``"margin"``, ``"entropy"`` and ``"epistemic"``.
            members: probes whose disagreement is measured.
            seed: of these.
        """
        found = {}
        measures = {"margin": margin_uncertainty, "entropy": entropy_uncertainty}
        if asked := measures.keys() & set(kinds):
            p = self.distributions(classifier(queries))
            found |= {kind: measures[kind](p) for kind in asked}
        if "epistemic" in kinds:
            ensemble = np.stack([member(queries) for member in self.members(x, y, members, seed)])
            found["epistemic"] = epistemic_uncertainty(self.distributions(ensemble))
        return found

    def _fit_classes(
        self, x: np.ndarray, y: np.ndarray, groups: np.ndarray | None, seed: int, num_classes: int
    ) -> Classifier:
        present = np.unique(y)
        chances = np.zeros(num_classes)
        if len(present) == 1:
            chances[present] = 1
            return lambda queries: np.tile(chances, (len(queries), 1))
        probe = linear_probe(
            x,
            np.searchsorted(present, y),
            reference=self.reference,
            groups=groups,
            c=self.c,
            num_classes=len(present),
            seed=seed,
        )

        def probabilities(queries: np.ndarray) -> np.ndarray:
            p = np.zeros((len(queries), num_classes))
            p[:, present] = probe.probabilities(queries)
            return p

        return probabilities


class ProbeLearner:
    """See :class:`monai_ssl.label.study.learner.Learner`.

    Args:
        question: the task, with all its training labels.
        members: probes whose disagreement is measured.
    """

    measure = "auc"

    def __init__(self, question: Question, members: int) -> None:
        labels = question.labels
        rows, test = labels.rows["train"], labels.rows["test"]
        shared = shared_features(question, {"pool": labels.rows["pool"], "train": rows, "test": test})
        self.features, self._queries = shared.of(rows), shared.of(test)
        self._targets, self._groups = labels.targets[rows], labels.groups[rows]
        self.duplicate_of = repeated_rows(question.store, rows)
        self.num_classes = max(len(labels.class_names), 2)
        self.truth, self.patients = labels.targets[test], numbered(labels.groups[test])
        self.paths = question.store.table["path"].take(rows).to_pylist()
        self.split_hash, self._members = labels.split_hash, members
        self._probe = PartialProbe(
            shared.of(shared.pool), len(labels.class_names), labels.multilabel, question.settings.get("probe_c")
        )

    def learn(self, chosen: np.ndarray, seed: int, kinds: Collection[str], folder: Path) -> Learned:
        """Fit a probe; nothing is written."""
        x, y = self.features[chosen], self._targets[chosen]
        classifier = self._probe.fit(x, y, self._groups[chosen], seed)
        unsure = self._probe.uncertainty(classifier, x, y, self.features, kinds, self._members, seed)
        return Learned(classifier(self._queries), unsure)

    def score(self, truth: np.ndarray, values: np.ndarray) -> float:
        """Area under the ROC curve, the mean over the classes."""
        return area_under_roc(truth, values)
