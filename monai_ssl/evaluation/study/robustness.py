# SPDX-License-Identifier: Apache-2.0
"""How a classifier holds when its images change: a linear probe or a fine-tuned network on perturbed test images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import DataLoader

from monai_ssl.data import PadCollate, StoreDataset
from monai_ssl.evaluation.classifier_card import load_classifier, read_classifier_card
from monai_ssl.evaluation.study.cells import StudyCell
from monai_ssl.evaluation.study.config import Study
from monai_ssl.evaluation.study.perturbations import PERTURBATIONS, perturbed_view
from monai_ssl.evaluation.study.probe_cells import fitted_probe, probe_features
from monai_ssl.evaluation.study.question import Question
from monai_ssl.evaluation.study.shared_features import shared_features
from monai_ssl.metrics import area_under_roc
from monai_ssl.transforms import ViewChain

__all__ = ["measure_robustness", "robustness_figures", "wants_robustness"]


def wants_robustness(study: Study, cell: StudyCell) -> bool:
    """Tell whether a cell is tested on perturbed images: linear probes and fine-tuned classifiers with most labels."""
    return (
        bool(study.robustness)
        and study.tasks[cell.task].kind == "classification"
        and cell.mode in ("linear", "finetune")
        and cell.fraction == _largest(study)
    )


def _largest(study: Study) -> float:
    """Of shares and counts the share 1, else the largest."""
    return 1 if 1 in study.fractions else max(study.fractions)


def measure_robustness(question: Question) -> dict[str, Any]:
    """Score the cell's classifier on test images, unchanged and with every perturbation at every level.

    Returns:
        ``score`` on unchanged images, and for each perturbation what :func:`robustness_figures` gives.

    Raises:
        ValueError: a perturbation does not suit the images.
    """
    labels, policy = question.labels, question.store.policy
    truth = labels.targets[labels.rows["test"]]
    predict = _probe(question) if question.cell.mode == "linear" else _network(question)
    unchanged = predict("", 0.0)
    found = {}
    for name in question.study.robustness:
        levels = PERTURBATIONS[name].levels
        perturbed_view(name, levels[0], question.preprocessing, policy)  # refused before the long work
        found[name] = robustness_figures(truth, unchanged, [predict(name, level) for level in levels], name)
    return {"measure": "auc", "score": area_under_roc(truth, unchanged), "perturbations": found}


def robustness_figures(
    truth: np.ndarray, unchanged: np.ndarray, changed: list[np.ndarray], name: str
) -> dict[str, Any]:
    """Sum up probabilities of the same images at several levels of a perturbation.

    Args:
        truth: ``(N,)`` or ``(N, K)``.
        unchanged: ``(N, K)`` probabilities of the images as they are.
        changed: the same for each level.
        name: of the perturbation.

    Returns:
        ``levels`` and ``scores``, ``mean_drop`` and ``worst_drop`` of the area under the ROC curve against the
        unchanged images, ``worst_level``, and ``spread``: the standard deviation of an image's probability over all
        levels (the unchanged one among them), as a mean over images and classes.
    """
    change = PERTURBATIONS[name]
    clean = area_under_roc(truth, unchanged)
    scores = [area_under_roc(truth, p) for p in changed]
    drops = clean - np.array(scores)
    return {
        "levels": list(change.levels),
        "identity": change.identity,
        "unit": change.unit,
        "source": change.source,
        "scores": scores,
        "mean_drop": float(drops.mean()),
        "worst_drop": float(drops.max()),
        "worst_level": change.levels[int(drops.argmax())],
        "spread": float(np.stack([unchanged, *changed]).std(axis=0).mean()),
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
    device = torch.device(question.study.device or ("cuda" if torch.cuda.is_available() else "cpu"))
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
