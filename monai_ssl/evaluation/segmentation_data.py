# SPDX-License-Identifier: Apache-2.0
"""Volumes with their label maps for training and evaluation, and the random changes that training makes to both."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from monai_ssl.data.patches import VolumePatchDataset
from monai_ssl.data.store import ImageStore
from monai_ssl.evaluation.segmentation_labels import SegmentationLabels
from monai_ssl.transforms import (
    IntensityStandardize,
    MultiView,
    RandomBrightnessContrast,
    RandomGamma,
    RandomGaussianNoise,
    RandomResample,
    ViewChain,
)

__all__ = ["LabelledVolumes", "ZoomedPatch", "read_size_for", "segmentation_views"]

_ZOOM = 0.2
_ROTATION_DEG = 15.0


class LabelledVolumes(VolumePatchDataset):
    """Volumes of a split, whole or in patches, whose ``"label_map"`` holds class numbers: 0, or 1 .. K.

    Args:
        store: the store.
        labels: the question.
        split: ``"train"``, ``"val"`` or ``"test"``.
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
        self.lookup = labels.lookup()
        super().__init__(
            store,
            labels.rows[split],
            read_size=read_size,
            seed=seed,
            label_maps=True,
            foreground_prob=foreground_prob,
            cache=cache,
        )

    def _label_part(self, i: int, row: int, box: tuple[slice, ...]) -> np.ndarray:
        return self.lookup[super()._label_part(i, row, box)]

    def _target(self, row: int) -> list[np.ndarray]:
        points = self.store.label_points(row)
        numbers = self.lookup[points[:, 0]]
        return [points[numbers == number, 1:] for number in np.unique(numbers[numbers > 0])]


class ZoomedPatch(RandomResample):
    """A patch of about ``size`` voxels: turned, mirrored and zoomed by a little, not stretched to the volume's shape.

    Unlike its base, whose box is a share of the image, the box has ``size`` voxels times a zoom factor along all axes,
    so the voxels keep their size in mm within the zoom. Where the image is smaller than the box, what lies beyond it is
    0, of label maps too, as in a sliding window over a small volume.

    Args:
        size: side(s) of the patch in voxels.
        zoom: least and greatest size of the box relative to ``size``, drawn evenly on the log scale.
        rotation_deg: see :class:`monai_ssl.transforms.RandomResample`.
        flip_prob: likewise.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        zoom: Sequence[float] = (1.0, 1.0),
        rotation_deg: float = 0.0,
        flip_prob: float | Sequence[float] = 0.0,
    ) -> None:
        super().__init__(size, rotation_deg=rotation_deg, flip_prob=flip_prob, padding="zeros")
        if len(zoom) != 2 or not 0 < zoom[0] <= zoom[1]:
            raise ValueError(f"zoom must be two positive numbers a <= b, got {zoom}")
        self.zoom = float(zoom[0]), float(zoom[1])

    def _draw_crop(self, sides: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """(B, n) sides of the box; where they are larger than the image, the box goes beyond it at both ends."""
        batch, n = sides.shape
        low, high = (math.log(value) for value in self.zoom)
        drawn = torch.rand(batch, 1, generator=generator, device=sides.device)
        size = torch.tensor(self.output_shape((1, 1, *[1] * n))[2:], dtype=torch.float32, device=sides.device)
        return (low + (high - low) * drawn).exp() * size


def read_size_for(patch_size: Sequence[int], strength: float = 1.0) -> tuple[int, ...]:
    """Return how many voxels to read for a patch, so that it can be moved, turned and zoomed within what was read."""
    return tuple(math.ceil(side * (1 + 0.3 * min(strength, 1.0))) for side in patch_size)


def segmentation_views(
    size: int | Sequence[int],
    spatial_dims: int = 3,
    strength: float = 1.0,
    flip_prob: float | Sequence[float] = 0.0,
    standardize: IntensityStandardize | None = None,
) -> MultiView:
    """Return one randomly changed view of each patch, for images and label maps alike.

    At strength 1: zoom within 20 %, a turn of up to 15 degrees, brightness and contrast within 20 %, gamma from 0.8 to
    1.25, noise of up to 2 % of the grey range on half of the patches.

    Args:
        size: side(s) of the patch in voxels.
        spatial_dims: 2 or 3.
        strength: scales all of it but the mirror; 0 cuts the patch out and nothing else.
        flip_prob: of a mirror, one number for the last axis (left-right) or one for each axis. 0 keeps left and right
            apart, where classes differ by their side.
        standardize: what the encoder was trained with; None: the package's common one.

    Raises:
        ValueError: the strength is outside [0, 2).
    """
    if not 0 <= strength < 2:
        raise ValueError(f"the strength of the augmentation must be in [0, 2), got {strength}")
    sides = (size,) * spatial_dims if isinstance(size, int) else tuple(size)
    zoom = 1 + _ZOOM * strength
    parts: list = [ZoomedPatch(sides, (1 / zoom, zoom), _ROTATION_DEG * strength, flip_prob)]
    if strength:
        jitter, gamma = min(0.2 * strength, 0.9), 1 + 0.25 * strength
        parts += [
            RandomBrightnessContrast(jitter, jitter, 0.5),
            RandomGamma((1 / gamma, gamma), 0.5),
            RandomGaussianNoise((0.0, 0.02 * strength), 0.5),
        ]
    return MultiView([ViewChain([*parts, standardize or IntensityStandardize()])])
