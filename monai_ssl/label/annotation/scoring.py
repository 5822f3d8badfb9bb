# SPDX-License-Identifier: Apache-2.0
"""Score the images: embed what is new, ask the newest model how unsure it is, and let every strategy plan ahead."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from monai_ssl.data import ImageStore
from monai_ssl.label.annotation.embedding import EmbeddedImages, embed_images
from monai_ssl.label.annotation.folder import StudiesFolder
from monai_ssl.label.annotation.labels import class_labels
from monai_ssl.label.annotation.plans import make_plans
from monai_ssl.label.study.probe_learner import PartialProbe
from monai_ssl.label.volume_uncertainty import volume_uncertainty
from monai_ssl.weights import atomic_file

__all__ = ["score_images"]

logger = logging.getLogger(__name__)

_KINDS = ("margin", "entropy", "epistemic")
_MEMBERS = 10


def score_images(
    folder: StudiesFolder,
    images: Mapping[str, str],
    labels: Mapping[str, str],
    *,
    device: str = "cpu",
    num_classes: int = 2,
    seed: int = 0,
) -> dict[str, Any]:
    """Embed, predict and plan.

    Classes make a linear probe on the features; else a segmentation network of the app is asked; else the strategies
    that need predictions are stood in for.

    Args:
        folder: of the studies.
        images: path of each image by its id.
        labels: path of each label by the image's id.
        device: where to compute.
        num_classes: classes that are expected while none are known.
        seed: of strategies and probes.

    Returns:
        Counts: ``embedded``, ``refused``, ``labelled``.

    Raises:
        FileNotFoundError: there is no encoder.
        ValueError: no image can be used, or the encoder does not suit them.
    """
    embedded, store = embed_images(folder, images, device)
    uncertainty: dict[str, np.ndarray] = {}
    note = ""
    try:
        classes = any(path.lower().endswith(".json") for path in labels.values())
        if classes:
            uncertainty, num_classes = _of_classes(embedded, labels, seed)
        elif folder.model("segmentation").is_file():
            uncertainty = _of_volumes(folder, embedded, store, labels, device)
        else:
            note = "no model has been trained yet"
    except ValueError as error:
        note = str(error)
        logger.warning("no predictions: %s", note)
    make_plans(folder, embedded, list(labels), uncertainty, num_classes=num_classes, seed=seed, note=note)
    counts = {"embedded": len(embedded.ids), "refused": len(embedded.refused), "labelled": len(labels)}
    for image, reason in sorted(embedded.refused.items()):
        logger.warning("%s can't be used and is not offered: %s", image, reason)
    return counts


def _of_classes(embedded: EmbeddedImages, labels: Mapping[str, str], seed: int) -> tuple[dict[str, np.ndarray], int]:
    given = class_labels(labels)
    targets = given.array(embedded.ids)
    known = np.flatnonzero(targets[:, 0] >= 0 if given.multilabel and targets.shape[1] else targets >= 0)
    if not len(given.class_names) or not len(known):
        raise ValueError("no class is known yet")
    x, y = embedded.features[known], targets[known]
    probe = PartialProbe(embedded.features, len(given.class_names), given.multilabel)
    if not given.multilabel and len(np.unique(y)) < 2:
        raise ValueError("all labelled images are of one class")
    classifier = probe.fit(x, y, seed=seed)
    found = probe.uncertainty(classifier, x, y, embedded.features, _KINDS, _MEMBERS, seed)
    return found, max(len(given.class_names), 2)


def _of_volumes(
    folder: StudiesFolder, embedded: EmbeddedImages, store: ImageStore, labels: Mapping[str, str], device: str
) -> dict[str, np.ndarray]:
    """Ask the network about the volumes it has not been asked about, and keep what it said."""
    model, path = folder.model("segmentation"), folder.state / "uncertainty.json"
    sha = hashlib.sha256(model.read_bytes()).hexdigest()
    kept: dict[str, Any] = {}
    if path.is_file():
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            logger.warning("%s is damaged; it is made anew", path)
    scores: dict[str, dict[str, float]] = kept.get("scores", {}) if kept.get("model") == sha else {}
    open_rows = [row for row, image in enumerate(embedded.ids) if image not in scores and image not in labels]
    found = volume_uncertainty(model, store, np.array(open_rows, dtype=np.int64), ("margin", "entropy"), device=device)
    for place, row in enumerate(open_rows):
        scores[embedded.ids[row]] = {kind: float(values[place]) for kind, values in found.items()}
    with atomic_file(path) as file:
        file.write(json.dumps({"model": sha, "scores": scores}).encode())
    return {
        kind: np.array([scores.get(image, {}).get(kind, np.nan) for image in embedded.ids])
        for kind in ("margin", "entropy")
    }
