# SPDX-License-Identifier: Apache-2.0
"""What a strategy knows when it chooses the next images to label."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch

__all__ = ["LabelPool"]

_UNIT = 1e-3  # how far from 1 the length of an embedding may be
_DEAD = 1e-4  # least deviation of a feature, as a share of the mean deviation: dead features stay small


@dataclass(frozen=True)
class LabelPool:
    """Embedded images, which of them are labelled, and how unsure a model is about each.

    Attributes:
        embeddings: ``(N, D)`` float32, rows of length 1; :meth:`of_features` makes them.
        labelled: ``(N,)`` booleans.
        closed: ``(N,)`` booleans: not to be offered though not labelled, for example images the annotator put aside.
        duplicate_of: ``(N,)`` row that stands for this one, -1 for a row that stands for itself, as in
            :class:`monai_ssl.data.DuplicateReport`. Of images that repeat one another one is offered, and none once
            one of them is labelled or closed.
        uncertainty: kind (``"margin"``, ``"entropy"``, ``"epistemic"``) to ``(N,)`` scores of which more is less sure;
            NaN where nothing was predicted. Empty before the first model.
        num_classes: classes that are expected among the images.

    Raises:
        ValueError: a shape does not fit, an embedding is not finite or not of length 1, or ``num_classes`` is below 2.
    """

    embeddings: np.ndarray
    labelled: np.ndarray
    closed: np.ndarray | None = None
    duplicate_of: np.ndarray | None = None
    uncertainty: Mapping[str, np.ndarray] = field(default_factory=dict)
    num_classes: int = 2

    def __post_init__(self) -> None:
        x = self.embeddings
        if x.ndim != 2 or not len(x):
            raise ValueError(f"embeddings must have shape (N, D) with at least one row, got {x.shape}")
        lengths = np.linalg.norm(x, axis=1)
        if not np.all(np.abs(lengths - 1) < _UNIT):  # a NaN is no unit length either
            raise ValueError(
                f"{int((~(np.abs(lengths - 1) < _UNIT)).sum())} of {len(x)} embeddings are not of length 1; "
                "LabelPool.of_features scales them"
            )
        arrays = {"labelled": self.labelled, "closed": self.closed, "duplicate_of": self.duplicate_of}
        for name, array in (arrays | dict(self.uncertainty)).items():
            if array is not None and np.shape(array) != (len(x),):
                raise ValueError(f"{name} must have one entry for each of {len(x)} images, got {np.shape(array)}")
        if self.num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {self.num_classes}")

    @classmethod
    def of_features(cls, features: np.ndarray | torch.Tensor, labelled: np.ndarray, **further) -> LabelPool:
        """Make it of features ``(N, F)``: each feature is standardised, then each image scaled to length 1.

        Pooled features of an encoder are positive and share one large direction; standardised, as the linear probe
        takes them, the cosine shows what differs.

        Raises:
            ValueError: a feature is not finite; otherwise see the class.
        """
        x = np.asarray(features.detach().cpu() if isinstance(features, torch.Tensor) else features, dtype=np.float64)
        if x.ndim != 2 or not np.isfinite(x).all():
            raise ValueError(f"features must be finite numbers of shape (N, F), got shape {x.shape}")
        spread = x.std(axis=0)
        x = (x - x.mean(axis=0)) / np.maximum(spread, max(_DEAD * spread.mean(), 1e-12))
        x[np.linalg.norm(x, axis=1) < 1e-9, 0] = 1.0  # the mean itself has no direction; any one does
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        return cls(x.astype(np.float32), np.asarray(labelled, dtype=bool), **further)

    def __len__(self) -> int:
        return len(self.embeddings)

    @property
    def offered(self) -> np.ndarray:
        """``(N,)`` booleans: images that may be chosen, duplicates not considered; see :meth:`distinct`."""
        return ~self.labelled if self.closed is None else ~(self.labelled | self.closed)

    def with_labelled(self, rows: Collection[int]) -> LabelPool:
        """Return the pool with some more images labelled."""
        if not len(rows):
            return self
        labelled = self.labelled.copy()
        labelled[list(rows)] = True
        return replace(self, labelled=labelled)

    def repeated(self) -> np.ndarray:
        """``(N,)`` booleans: images that are labelled or closed, and all copies of these."""
        taken = ~self.offered
        if self.duplicate_of is None:
            return taken
        group = np.where(self.duplicate_of < 0, np.arange(len(self)), self.duplicate_of)
        return np.isin(group, group[taken])

    def distinct(self) -> tuple[LabelPool, np.ndarray]:
        """Return the pool without the rows that repeat another one, and the rows that are left.

        A row is labelled, or closed, if any image it stands for is.
        """
        if self.duplicate_of is None:
            return self, np.arange(len(self))
        stands = np.where(self.duplicate_of < 0, np.arange(len(self)), self.duplicate_of)
        rows = np.flatnonzero(self.duplicate_of < 0)
        closed = np.zeros_like(self.labelled) if self.closed is None else self.closed
        any_of = {}
        for name, flags in {"labelled": self.labelled, "closed": closed}.items():
            spread = np.zeros(len(self), dtype=bool)
            np.logical_or.at(spread, stands, flags)
            any_of[name] = spread[rows]
        scores = {kind: np.asarray(values)[rows] for kind, values in self.uncertainty.items()}
        return replace(self, embeddings=self.embeddings[rows], duplicate_of=None, uncertainty=scores, **any_of), rows
