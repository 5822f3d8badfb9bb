# SPDX-License-Identifier: Apache-2.0
"""How a model holds when its images change: linear probes and trained networks on perturbed test images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import DataLoader

from monai_ssl.data import PadCollate, StoreDataset
from monai_ssl.evaluation.classifier_card import load_classifier, read_classifier_card
from monai_ssl.evaluation.segmentation_report import class_mean
from monai_ssl.evaluation.study.cells import StudyCell
from monai_ssl.evaluation.study.config import Study
from monai_ssl.evaluation.study.perturbations import PERTURBATIONS, perturbed_view
from monai_ssl.evaluation.study.probe_cells import fitted_probe, probe_features
from monai_ssl.evaluation.study.question import Question
from monai_ssl.evaluation.study.segmentation_robustness import volume_dice
from monai_ssl.evaluation.study.shared_features import shared_features
from monai_ssl.metrics import area_under_roc
from monai_ssl.transforms import ViewChain

__all__ = ["measure_robustness", "robustness_figures", "wants_robustness"]


def wants_robustness(study: Study, cell: StudyCell) -> bool:
    """Tell whether a cell is tested on perturbed images: all but nearest neighbours, with most labels."""
    most = 1 if 1 in study.fractions else max(study.fractions)  # the share 1 is more than any number
    return bool(study.robustness) and cell.mode != "knn" and cell.fraction == most


def measure_robustness(question: Question, known: dict[str, Any] | None = None) -> dict[str, Any]:
    """Score the cell's model on test images, unchanged and with every perturbation at every level.

    Args:
        question: of a cell that is done.
        known: perturbations that were measured before; they are kept.

    Returns:
        ``score`` on unchanged images, and for each perturbation what :func:`robustness_figures` gives.

    Raises:
        ValueError: a perturbation does not suit the images.
    """
    if question.task.kind == "segmentation":
        measure, outcome, score = "dice", volume_dice(question), class_mean
    else:
        truth = question.labels.targets[question.labels.rows["test"]]
        measure, outcome = "auc", _probe(question) if question.cell.mode == "linear" else _network(question)
        score = partial(area_under_roc, truth)
    unchanged, found = outcome("", 0.0), dict(known or {})
    for name in [name for name in question.study.robustness if name not in found]:
        levels = PERTURBATIONS[name].levels
        outcomes = np.stack([unchanged, *(outcome(name, level) for level in levels)])
        found[name] = robustness_figures([score(one) for one in outcomes], outcomes, name)
    return {"measure": measure, "score": score(unchanged), "perturbations": found}


def robustness_figures(scores: Sequence[float], outcomes: np.ndarray, name: str) -> dict[str, Any]:
    """Sum up what a model makes of the same images at several levels of a perturbation.

    Args:
        scores: on unchanged images, then at each level.
        outcomes: ``(1 + levels, N, K)``, the probabilities of each image, or its Dice; NaN where not defined.
        name: of the perturbation.

    Returns:
        ``levels`` and ``scores``, ``mean_drop`` and ``worst_drop`` against the unchanged images, ``worst_level``, and
        ``spread``: the standard deviation of an image's outcome over all levels (the unchanged one among them), as a
        mean over images and classes.
    """
    change = PERTURBATIONS[name]
    drops = scores[0] - np.array(scores[1:])
    defined = ~np.isnan(outcomes).all(axis=0)
    return {
        "levels": list(change.levels),
        "identity": change.identity,
        "unit": change.unit,
        "source": change.source,
        "scores": [float(value) for value in scores[1:]],
        "mean_drop": float(drops.mean()),
        "worst_drop": float(drops.max()),
        "worst_level": change.levels[int(drops.argmax())],
        "spread": float(np.nanstd(outcomes[:, defined], axis=0).mean()),
    }


def _view(question: Question, name: str, level: float) -> ViewChain:
    if not name:
        return question.preprocessing.view()
    return perturbed_view(name, level, question.preprocessing, question.store.policy)


def _probe(question: Question) -> Callable[[str, float], np.ndarray]:
    features = probe_features(question)
    probe, test = fitted_probe(question, features), question.labels.rows["test"]

    def predict(name: str, level: float) -> np.ndarray:
        if not name:
            return probe(features.of(test))
        view = _view(question, name, level)
        changed = shared_features(question, {"test": test}, name=f"{name}_{level:g}", view=view)
        return probe(changed.of(test))

    return predict


def _network(question: Question) -> Callable[[str, float], np.ndarray]:
    model = Path(question.settings["output_dir"]) / "model.pt"
    card = read_classifier_card(model)
    network = card.build()
    load_classifier(network, model)
    device = question.study.compute_device
    network.to(device).eval()
    test = question.labels.rows["test"]

    @torch.no_grad()
    def predict(name: str, level: float) -> np.ndarray:
        view = _view(question, name, level)
        loader = DataLoader(
            StoreDataset(question.store, test), batch_size=question.study.batch_size, collate_fn=PadCollate()
        )
        parts = [
            card.probabilities(network(view(b["image"].to(device), None, b["extent"].to(device)))).cpu() for b in loader
        ]
        return torch.cat(parts).numpy()

    return predict
