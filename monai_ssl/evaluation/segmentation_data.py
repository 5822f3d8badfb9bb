# SPDX-License-Identifier: Apache-2.0
"""Volumes with their label maps for training and evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence

from monai_ssl.data.patches import VolumePatchDataset
from monai_ssl.data.store import ImageStore
from monai_ssl.evaluation.segmentation_labels import SegmentationLabels

__all__ = ["LabelledVolumes", "read_size_for"]


class LabelledVolumes(VolumePatchDataset):
    """Volumes of a split, whole or in patches, whose ``"label_map"`` holds class numbers: 0, or 1 .. K.

    Args:
        store: the store.
        labels: the question.
        split: ``"train"``, ``"val"``, ``"test"``, or ``"pool"``: all volumes to pretrain on, of which only those of the
            labelled subset show their label map, so that hybrid pretraining with 10 % of the labels sees the labels
            that fine-tuning with 10 % sees. The others' is :data:`monai_ssl.losses.IGNORED_LABEL` throughout, and the
            entry ``"labelled"`` of their items 0.
        read_size: see :class:`monai_ssl.data.VolumePatchDataset`; None reads whole volumes.
        seed: likewise.
        foreground_prob: chance that a patch is centred on a voxel of a class, each class of the volume alike.
        cache: see :class:`monai_ssl.data.VolumePatchDataset`.

    Raises:
        ValueError: there is no such split.
    """

    def __init__(
        self,
        store: ImageStore,
        labels: SegmentationLabels,
        split: str,
        *,
        read_size: int | Sequence[int] | None = None,
        seed: int = 0,
        foreground_prob: float = 0.0,
        cache: str = "none",
    ) -> None:
        if split not in labels.rows:
            raise ValueError(f"there is no split {split!r}; there are {', '.join(labels.rows)}")
        super().__init__(
            store,
            labels.rows[split],
            read_size=read_size,
            seed=seed,
            label_maps=True,
            foreground_prob=foreground_prob,
            cache=cache,
            labelled_rows=labels.rows["train"] if split == "pool" else None,
            lookup=labels.lookup(),
        )


def read_size_for(patch_size: Sequence[int], strength: float = 1.0) -> tuple[int, ...]:
    """Return how many voxels to read for a patch, so that it can be moved, turned and zoomed within what was read.

    Args:
        patch_size: of the view.
        strength: of :func:`monai_ssl.transforms.volume_augmentation`, which zooms by up to 1 / 0.86 at 1.
    """
    return tuple(math.ceil(side * 1.3**strength) for side in patch_size)
