# SPDX-License-Identifier: Apache-2.0
"""What a round of a study learns with: images that an oracle can label, a model of some of them, and its test."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from monai_ssl.data import find_duplicates
from monai_ssl.data.store import ImageStore

__all__ = ["Learned", "Learner", "repeated_rows"]


@dataclass(frozen=True)
class Learned:
    """A model of some labels.

    Attributes:
        values: ``(N, ...)`` for each test image, what :meth:`Learner.score` takes.
        uncertainty: kind to ``(P,)`` scores of the pool's images; NaN where they were not computed.
    """

    values: np.ndarray
    uncertainty: Mapping[str, np.ndarray]


class Learner(Protocol):
    """A task with its pool and its test images.

    Attributes:
        features: ``(P, F)`` of the pool's images, by the pretrained encoder.
        duplicate_of: ``(P,)`` position of the image that each repeats, -1 for none.
        num_classes: that the strategies may expect.
        measure: name of the figure.
        truth: ``(N, ...)`` of the test images.
        patients: ``(N,)`` numbers of their patients.
        paths: ``(P,)`` of the pool's images, relative to the images' folder.
        split_hash: of the split.
    """

    features: np.ndarray
    duplicate_of: np.ndarray
    num_classes: int
    measure: str
    truth: np.ndarray
    patients: np.ndarray
    paths: list[str]
    split_hash: str

    def learn(self, chosen: np.ndarray, seed: int, kinds: Collection[str], folder: Path) -> Learned:
        """Learn from the labels of some of the pool's images.

        Args:
            chosen: positions in the pool.
            seed: of the training.
            kinds: kinds of uncertainty that are wanted.
            folder: for files.
        """

    def score(self, truth: np.ndarray, values: np.ndarray) -> float:
        """Return the figure of test images, higher is better.

        Raises:
            ValueError: it is not defined on these images.
        """


def repeated_rows(store: ImageStore, rows: np.ndarray) -> np.ndarray:
    """Return for each of some rows the position of the one that it repeats, -1 for none; see ``find_duplicates``."""
    table = store.table.take(rows)
    looks = "perceptual_hash" in table.column_names
    return find_duplicates(table, 6 if looks else -1).duplicate_of
