# SPDX-License-Identifier: Apache-2.0
"""How well a predicted mask meets the true one: Dice, surface distances in mm, volumes in ml, and what is empty.

Dice and the surfaces are MONAI's (``monai.metrics.compute_dice``, ``monai.metrics.utils.get_edge_surface_distance``).
Both directions are measured once and give the average and the 95th percentile, as MONAI's
``compute_average_surface_distance(symmetric=True)`` and ``compute_hausdorff_distance(percentile=95)`` do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan, prod

import numpy as np
import torch
from monai.metrics import compute_dice
from monai.metrics.utils import get_edge_surface_distance

__all__ = ["MaskScore", "mask_scores"]


@dataclass(frozen=True)
class MaskScore:
    """One class of one image.

    What is empty decides what is defined:

    ================  =====  ====================  ================
    outcome           Dice   surface distances     truth, prediction
    ================  =====  ====================  ================
    found             [0,1]  defined               both have voxels
    missed            0      NaN                   only the truth
    false alarm       0      NaN                   only the prediction
    rightly absent    NaN    NaN                   neither
    ================  =====  ====================  ================

    Attributes:
        dice: 2 |A n B| / (|A| + |B|).
        surface_distance_mm: mean distance of all surface voxels of both masks to the other's surface.
        hausdorff95_mm: the larger one of both directions' 95th percentile of that distance.
        truth_ml: volume of the true mask.
        predicted_ml: volume of the predicted one.
    """

    dice: float
    surface_distance_mm: float
    hausdorff95_mm: float
    truth_ml: float
    predicted_ml: float

    @property
    def outcome(self) -> str:
        """One of the four words of the table."""
        if self.truth_ml:
            return "found" if self.predicted_ml else "missed"
        return "false alarm" if self.predicted_ml else "rightly absent"


def mask_scores(
    prediction: np.ndarray | torch.Tensor,
    truth: np.ndarray | torch.Tensor,
    num_classes: int,
    spacing_mm: Sequence[float],
    distances: bool = True,
) -> list[MaskScore]:
    """Score a predicted label map.

    Args:
        prediction: whole numbers (*spatial): 0 is background, k = 1 .. ``num_classes`` are the classes.
        truth: likewise, of the same shape.
        num_classes: classes without the background.
        spacing_mm: distance of neighbouring pixels or voxels along each axis.
        distances: measure the surface distances too; they take longest.

    Returns:
        One score for each class, in order.

    Raises:
        ValueError: shapes or axes do not fit.

    Example:
        >>> truth = np.zeros((8, 8, 8), np.uint8)
        >>> truth[2:6, 2:6, 2:6] = 1
        >>> score, = mask_scores(np.roll(truth, 1, axis=0), truth, 1, (2.0, 1.0, 1.0))
        >>> score.dice, score.truth_ml, score.outcome
        (0.75, 0.128, 'found')
    """
    predicted, true = (torch.as_tensor(np.asarray(mask).astype(np.int64)) for mask in (prediction, truth))
    if predicted.shape != true.shape or len(spacing_mm) != true.ndim:
        raise ValueError(
            f"the masks have shapes {tuple(predicted.shape)} and {tuple(true.shape)}, the spacing has "
            f"{len(spacing_mm)} axes"
        )
    voxel_ml = prod(float(step) for step in spacing_mm) / 1000
    sizes = torch.stack([mask.flatten().bincount(minlength=num_classes + 1) for mask in (true, predicted)]).tolist()
    dice = compute_dice(
        predicted[None, None],
        true[None, None],
        include_background=False,
        ignore_empty=False,
        num_classes=num_classes + 1,
    )[0].tolist()
    scores = []
    for k in range(1, num_classes + 1):
        in_truth, in_prediction = sizes[0][k], sizes[1][k]
        surfaces = nan, nan
        if distances and in_truth and in_prediction:
            surfaces = _surface_distances(predicted == k, true == k, spacing_mm)
        overlap = dice[k - 1] if in_truth or in_prediction else nan
        scores.append(MaskScore(overlap, *surfaces, in_truth * voxel_ml, in_prediction * voxel_ml))
    return scores


def _surface_distances(predicted: torch.Tensor, true: torch.Tensor, spacing_mm: Sequence[float]) -> tuple[float, float]:
    """Average and 95th percentile of the distances of two masks' surfaces, none of them empty."""
    _, both, _ = get_edge_surface_distance(predicted, true, spacing=[float(s) for s in spacing_mm], symmetric=True)
    both = [distance.numpy().astype(np.float64) for distance in both]
    return float(np.concatenate(both).mean()), max(float(np.percentile(distance, 95)) for distance in both)
