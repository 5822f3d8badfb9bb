# SPDX-License-Identifier: Apache-2.0
"""Features of a study's images, computed once for each encoder and shared by all of its probes."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.data import DataLoader

from monai_ssl.data import PadCollate, StoreDataset
from monai_ssl.data.files import folder_lock
from monai_ssl.evaluation.features import extract_features
from monai_ssl.evaluation.study.config import RANDOM
from monai_ssl.evaluation.study.question import Question, encoder_sha256
from monai_ssl.networks import ImageEncoder
from monai_ssl.weights.files import WeightsFileError, read_header, read_tensors, write_tensors

__all__ = ["SharedFeatures", "shared_features", "untrained_seed"]

logger = logging.getLogger(__name__)

_POOL = 2000  # images whose statistics standardise the features


@dataclass(frozen=True)
class SharedFeatures:
    """Features of some rows of a store.

    Attributes:
        features: ``(N, F)`` float32.
        rows: ``(N,)`` sorted rows of the store.
        pool: rows among them whose mean and deviation standardise all.
        lineage: earlier training stages of the encoder.
    """

    features: np.ndarray
    rows: np.ndarray
    pool: np.ndarray
    lineage: tuple[dict, ...] = ()

    def of(self, rows: np.ndarray) -> np.ndarray:
        """Return the features of some of the rows, in their order."""
        return self.features[np.searchsorted(self.rows, rows)]


def untrained_seed(question: Question) -> int | None:
    """Return the seed of the network's random weights, None for a pretrained encoder."""
    return question.cell.seed if question.cell.encoder == RANDOM else None


def shared_features(
    question: Question,
    whole: dict[str, np.ndarray],
    *,
    name: str = "all",
    view: Callable | None = None,
) -> SharedFeatures:
    """Return the features of a question's images, from the file of an earlier call if there is one.

    Args:
        question: of a classification.
        whole: rows of each split with all their labels; those of ``"pool"`` are drawn from.
        name: of the file, another one for every view.
        view: of the images; None: whole, at the encoder's size.

    Returns:
        Features of all rows of the splits, and of at most 2,000 of the pool.

    Raises:
        ValueError: see :func:`monai_ssl.evaluation.extract_features`.
    """
    study, cell, seed = question.study, question.cell, untrained_seed(question)
    pool = whole.get("pool", np.empty(0, dtype=np.int64))
    if len(pool) > _POOL:
        pool = np.sort(np.random.default_rng(0).choice(pool, _POOL, replace=False))
    rows = np.unique(np.concatenate([pool, *(found for split, found in whole.items() if split != "pool")]))
    folder = study.output_dir / "features" / cell.task / cell.encoder
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}{'' if seed is None else f'.seed-{seed}'}.safetensors"
    key = _key(question, rows)
    with folder_lock(folder, lambda: logger.info("%s: another process computes these features; waiting", folder)):
        found = _read(path, key)
        if found is None:
            features, lineage = _compute(question, rows, view, seed)
            write_tensors(path, {"features": features}, {"key": key, "lineage": json.dumps(lineage)})
            found = features.numpy(), tuple(lineage)
    return SharedFeatures(found[0], rows, pool, found[1])


def _compute(question: Question, rows: np.ndarray, view: Callable | None, seed: int | None) -> tuple:
    study, start = question.study, question.start
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0 if seed is None else seed)
        encoder = ImageEncoder(start.build(2))  # the head is not used
    loader = DataLoader(
        StoreDataset(question.store, rows), batch_size=study.batch_size, num_workers=0, collate_fn=PadCollate()
    )
    features, index = extract_features(encoder, loader, view or question.preprocessing.view(), study.compute_device)
    assert np.array_equal(index.numpy(), rows)
    return features, list(start.lineage)


def _key(question: Question, rows: np.ndarray) -> str:
    """Everything that the features depend on, as a hash."""
    contents = question.store.table["content_hash"].take(rows).to_pylist()
    parts = {
        "weights": encoder_sha256(question.start.encoder_weights),
        "network": [question.start.architecture, question.start.complete_args()],
        "preprocessing": question.preprocessing.to_dict(),
        "recipe": question.store.recipe,
        "images": contents,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _read(path: Path, key: str) -> tuple[np.ndarray, tuple[dict, ...]] | None:
    if not path.is_file():
        return None
    try:
        facts = read_header(path)[0]
        if facts.get("key") != key:
            logger.info("%s is of other images or weights; it is computed anew", path)
            return None
        return read_tensors(path)["features"].numpy(), tuple(json.loads(facts["lineage"]))
    except WeightsFileError:
        logger.warning("%s is damaged; it is computed anew", path)
        return None
