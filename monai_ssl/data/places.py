# SPDX-License-Identifier: Apache-2.0
"""Small patches about known places of labelled volumes: what is in the middle is their class."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from monai_ssl.data.store import ImageStore


class LabelledPlaces(Dataset):
    """Patches ``{"image": (1, *size) float32 in [0, 1], "index": int, "label": int}``, each about a voxel of a class.

    The places are drawn once, from (seed, row) and nothing else: in every volume the same number of voxels for each
    class that it holds, and as many voxels of the body that carry no label of ``classes``. Beyond the volume there are
    zeros. A few dozen volumes give a thousand places, so that an encoder's knowledge of anatomy can be measured where
    labels of whole volumes are too few.

    Args:
        store: a store of volumes with label maps.
        rows: rows of ``store.table``; those without a label map give no places.
        size: voxels (D, H, W) of a patch.
        classes: names and their values in the label maps, for example ``{"liver": 1}``; the name ``"none"`` stands for
            every other place and is the first class.
        per_class: places of each class in a volume.
        seed: of the draws.

    Attributes:
        class_names: ``"none"``, then ``classes``; a place's label is the position.
        rows: (N,) row of each place.
        centres: (N, 3) its voxel (d, h, w).
        labels: (N,) its class.

    Raises:
        ValueError: the store holds no volumes, an argument is out of range, or no row has a label map with a class.
    """

    def __init__(
        self,
        store: ImageStore,
        rows: Sequence[int] | np.ndarray,
        size: Sequence[int],
        classes: Mapping[str, int],
        *,
        per_class: int = 2,
        seed: int = 0,
    ) -> None:
        if not store.has_volumes:
            raise ValueError(f"{store.folder} is no store of volumes; prepare_volumes makes one")
        if len(size) != 3 or min(size) < 1 or per_class < 1 or seed < 0:
            raise ValueError(f"size {size} must be three sides, per_class {per_class} 1 or more, seed {seed} 0 or more")
        if not classes or "none" in classes or 0 in classes.values():
            raise ValueError(f"classes are names with values above 0, without 'none'; got {dict(classes)}")
        self.store, self.size = store, np.array(size)
        self.class_names = ["none", *classes]
        found = [self._draw(int(row), list(classes.values()), per_class, seed) for row in np.asarray(rows)]
        places = np.concatenate([np.empty((0, 5), np.int64), *found])
        if not (places[:, 1] > 0).any():
            raise ValueError(f"no label map of the {len(found)} volumes holds any of {', '.join(classes)}")
        self.rows, self.labels, self.centres = places[:, 0], places[:, 1], places[:, 2:]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        row, first = int(self.rows[i]), self.centres[i] - self.size // 2
        low = np.maximum(first, 0)
        high = np.minimum(first + self.size, self.store.shape(row))
        read = self.store.read_stored(row, tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True)))
        image = np.zeros(self.size, np.float32)
        inside = tuple(slice(int(a), int(b)) for a, b in zip(low - first, high - first, strict=True))
        np.divide(read, self.store.levels(row), out=image[inside], dtype=np.float32)
        return {"image": torch.from_numpy(image)[None], "index": int(i), "label": int(self.labels[i])}

    def joined(self, other: LabelledPlaces) -> LabelledPlaces:
        """Return these places and then those of another draw from the same store, with patches of one size."""
        both = copy.copy(self)
        for name in ("rows", "labels", "centres"):
            setattr(both, name, np.concatenate([getattr(self, name), getattr(other, name)]))
        return both

    def _draw(self, row: int, values: list[int], count: int, seed: int) -> np.ndarray:
        """Places of one volume: (n, 5) row, class, d, h, w."""
        if not self.store.has_label_map(row):
            return np.empty((0, 5), np.int64)
        random = np.random.default_rng([seed, row])
        points = self.store.label_points(row).astype(np.int64)
        places = []
        for number, value in enumerate(values, 1):
            of_class = points[points[:, 0] == value, 1:]
            chosen = random.permutation(len(of_class))[:count]
            places += [[row, number, *of_class[place]] for place in chosen]
        labels, box = self.store.read_label_map(row), self.store.foreground(row)
        body = np.argwhere(~np.isin(labels[box], values))
        start = [part.start for part in box]
        for place in random.permutation(len(body))[:count]:
            places.append([row, 0, *(body[place] + start)])
        return np.array(places, np.int64).reshape(-1, 5)
