# SPDX-License-Identifier: Apache-2.0
"""Give a classifier's head a linear probe's weights before training starts."""

from __future__ import annotations

import logging

import numpy as np
import torch
from monai.data import DataLoader
from torch import nn

from monai_ssl.data.datasets import PadCollate, StoreDataset
from monai_ssl.data.store import ImageStore
from monai_ssl.evaluation.features import extract_features
from monai_ssl.evaluation.fine_tuning import set_classification_layer
from monai_ssl.evaluation.labels import ClassificationLabels
from monai_ssl.evaluation.probes import LinearProbe, linear_probe
from monai_ssl.evaluation.starting_point import StartingPoint
from monai_ssl.networks import ImageEncoder
from monai_ssl.transforms import ViewChain

__all__ = ["fit_head"]

logger = logging.getLogger(__name__)


def fit_head(
    network: nn.Module,
    start: StartingPoint,
    store: ImageStore,
    labels: ClassificationLabels,
    view: ViewChain,
    *,
    head_init: str = "probe",
    device: torch.device | str = "cpu",
    batch_size: int = 64,
    num_workers: int = 0,
    pool_images: int = 2000,
    c: float | None = None,
    balanced: bool = False,
    seed: int = 0,
) -> LinearProbe | None:
    """Fit a linear probe to the encoder's features of the labelled images and put it into the head.

    Nothing is done when training starts from scratch, or with ``head_init="random"`` (unless the mode is linear, which
    is nothing but this probe).

    Args:
        network: the classifier, changed in place.
        start: of the training.
        store: of the images.
        labels: the question.
        view: whole images at the network's size.
        head_init: ``"probe"`` or ``"random"``.
        device: where to compute.
        batch_size: of the feature extraction.
        num_workers: of the loader.
        pool_images: at most so many images of the pool, drawn at random, give the statistics that standardise.
        c: inverse regularisation of the probe; None chooses it.
        balanced: weigh the classes by their inverse frequency.
        seed: of the draw and of the cross-validation.

    Returns:
        The probe, or None.

    Raises:
        ValueError: ``head_init`` is unknown.
    """
    if head_init not in ("probe", "random"):
        raise ValueError(f"head_init must be 'probe' or 'random', got {head_init!r}")
    if start.mode == "scratch" or (start.mode == "finetune" and head_init == "random"):
        return None
    pool = labels.rows["pool"]
    if len(pool) > pool_images:
        pool = np.random.default_rng(seed).choice(pool, pool_images, replace=False)
    labelled = labels.rows["train"]
    rows = np.union1d(pool, labelled)
    loader = DataLoader(
        StoreDataset(store, rows), batch_size=batch_size, num_workers=num_workers, collate_fn=PadCollate()
    )
    features, index = extract_features(ImageEncoder(network), loader, view, device)
    x = features.numpy()
    place = {row: n for n, row in enumerate(index.tolist())}
    mine = [place[row] for row in labelled.tolist()]
    probe = linear_probe(
        x[mine],
        labels.targets[labelled],
        reference=x[[place[row] for row in pool.tolist()]],
        groups=labels.groups[labelled],
        c=c,
        num_classes=None if labels.multilabel else len(labels.class_names),
        class_names=labels.class_names,
        balanced=balanced,
        seed=seed,
    )
    set_classification_layer(network, probe)
    logger.info("head: linear probe of %d labelled images, C=%g (%s)", len(labelled), probe.c, probe.c_source)
    return probe
