# SPDX-License-Identifier: Apache-2.0
r"""The losses of BYOL and SimSiam: how far a prediction's direction is from that of a target that gets no gradient.

With prediction p, target z and stop-gradient sg:

.. math::
    D(p, z) = - \frac{p}{\lVert p \rVert} \cdot \frac{\mathrm{sg}(z)}{\lVert \mathrm{sg}(z) \rVert}, \qquad
    \Big\lVert \frac{p}{\lVert p \rVert} - \frac{\mathrm{sg}(z)}{\lVert \mathrm{sg}(z) \rVert} \Big\rVert^2
    = 2 + 2 D(p, z)

The first is Chen & He, *Exploring Simple Siamese Representation Learning*, CVPR 2021, arXiv 2011.10566, equations 1
and 3; the second Grill et al., *Bootstrap Your Own Latent*, NeurIPS 2020, arXiv 2006.07733, equation 2.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from monai_ssl.losses.contrast import full_precision
from monai_ssl.losses.distributed import DistributedKind

__all__ = ["CosineRegressionLoss", "NegativeCosineLoss", "cosine_regression", "negative_cosine"]


@full_precision
def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """SimSiam's D: minus the cosine between predictions and targets, averaged over the batch.

    Computed in float32 (float64 for float64 predictions). A row of zeros has cosine 0 with anything.

    Args:
        prediction: (B, D), of any length.
        target: (B, D), of any length; no gradient flows to it.

    Returns:
        Scalar in [-1, 1]; about 0 for independent directions.

    Raises:
        ValueError: the shapes differ or are not (B, D).

    Example:
        >>> import torch
        >>> x = torch.eye(3)
        >>> [round(negative_cosine(2 * x, y).item(), 4) for y in (x, x + x.roll(1, 0), -x)]
        [-1.0, -0.7071, 1.0]
    """
    if prediction.ndim != 2 or prediction.shape != target.shape:
        raise ValueError(
            f"prediction and target must have one shape (B, D), got {tuple(prediction.shape)} and {tuple(target.shape)}"
        )
    target = F.normalize(target.detach().to(prediction.dtype), dim=1)
    return -(F.normalize(prediction, dim=1) * target).sum(dim=1).mean()


def cosine_regression(prediction: Tensor, target: Tensor) -> Tensor:
    """BYOL's loss: the squared distance between the directions of predictions and targets, averaged over the batch.

    Args:
        prediction: (B, D), of any length.
        target: (B, D), of any length; no gradient flows to it.

    Returns:
        Scalar in [0, 4]; about 2 for independent directions.

    Raises:
        ValueError: the shapes differ or are not (B, D).
    """
    return 2 + 2 * negative_cosine(prediction, target)


class NegativeCosineLoss(nn.Module):
    """Module face of :func:`negative_cosine`.

    Every image stands for itself, so that under DistributedDataParallel the mean over processes is the whole batch's.
    """

    distribution: ClassVar[DistributedKind] = "local"

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Loss of ``prediction`` (B, D) against ``target`` (B, D)."""
        return negative_cosine(prediction, target)


class CosineRegressionLoss(NegativeCosineLoss):
    """Module face of :func:`cosine_regression`."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Loss of ``prediction`` (B, D) against ``target`` (B, D)."""
        return cosine_regression(prediction, target)
