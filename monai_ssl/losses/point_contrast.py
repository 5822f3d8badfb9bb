# SPDX-License-Identifier: Apache-2.0
r"""InfoNCE between the points of two views of one image, where a point may have several positives, or none.

Xie, Lin, Zhang, Cao, Lin, Hu, *Propagate Yourself: Exploring Pixel-Level Consistency for Unsupervised Visual
Representation Learning*, CVPR 2021, arXiv 2011.10043, equation 2 (PixContrast). With the points x_i of one view, x'_j
of the other, temperature t, and P_i those points j that show the same place as i::

    L_i = -log( sum over j in P_i of exp(cos(x_i, x'_j) / t)  /  sum over all j of exp(cos(x_i, x'_j) / t) )
    L   = mean over images of the mean over the image's points i that have a positive of L_i

Images without such a point are left out of the mean.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import normalize

from monai_ssl.losses.contrast import check_temperature, full_precision, log_sum_exp_of_products
from monai_ssl.losses.distributed import DistributedKind, is_distributed

__all__ = ["PointContrastLoss", "point_contrast"]


@full_precision
def point_contrast(
    query: Tensor, key: Tensor, positive: Tensor, temperature: float | Tensor = 0.3, *, normalized: bool = False
) -> Tensor:
    """Contrast of points within each image, see the module's text for the formula.

    Computed in float32 (float64 for float64 queries), one matrix (B, P, Q) at a time. Where all logits are equal, a
    point with n positives has the loss ``log(Q / n)``. In several processes the mean is over the images of all that
    have a positive, so that the mean of the processes' losses is the whole batch's.

    Args:
        query: ``(B, P, D)`` features of P points of one view of each of B images.
        key: ``(B, Q, D)`` features of Q points of the other view.
        positive: boolean ``(B, P, Q)``, True where both show the same place.
        temperature: t, a positive number, or a scalar tensor if it is learned.
        normalized: the features already have unit length and are used as they are.

    Returns:
        Scalar; 0, with gradients of 0, if no point has a positive.

    Raises:
        ValueError: if shapes do not fit, ``positive`` is not boolean, or the temperature is not positive.

    Example:
        >>> points = torch.eye(2)[None]
        >>> round(point_contrast(points, points, torch.eye(2, dtype=torch.bool)[None], 1.0).item(), 4)
        0.3133
        >>> point_contrast(points, points, torch.zeros(1, 2, 2, dtype=torch.bool)).item()
        0.0
    """
    check_temperature(temperature)
    if query.ndim != 3 or key.ndim != 3 or key.shape[::2] != query.shape[::2]:
        raise ValueError(
            f"query and key must be of shapes (B, P, D) and (B, Q, D), got {tuple(query.shape)} and {tuple(key.shape)}"
        )
    expected = (*query.shape[:2], key.shape[1])
    if positive.dtype != torch.bool or tuple(positive.shape) != expected:
        raise ValueError(f"positive must be boolean of shape {expected}, got {positive.dtype} {tuple(positive.shape)}")
    key = key.to(query.dtype)
    if not normalized:
        query, key = normalize(query, dim=2), normalize(key, dim=2)
    query = query / temperature

    def keep_positives_(logits: Tensor) -> None:  # finite, so that a point without positives gives no NaN
        logits.masked_fill_(~positive, torch.finfo(logits.dtype).min)

    loss = log_sum_exp_of_products(query, key) - log_sum_exp_of_products(query, key, keep_positives_)  # (B, P)
    counted = positive.any(2)
    points = counted.sum(1)  # (B,)
    of_image = torch.where(counted, loss, 0).sum(1) / points.clamp(min=1)
    return of_image.sum() / _mean_over_processes((points > 0).sum().to(loss.dtype))


class PointContrastLoss(nn.Module):
    """Module face of :func:`point_contrast`.

    Args:
        temperature: positive; 0.3 in PixPro.
        normalized: the features given to ``forward`` already have unit length.
    """

    distribution: ClassVar[DistributedKind] = "reduces_statistics"

    def __init__(self, temperature: float = 0.3, normalized: bool = False) -> None:
        super().__init__()
        check_temperature(temperature)
        self.temperature = temperature
        self.normalized = normalized

    def forward(self, query: Tensor, key: Tensor, positive: Tensor) -> Tensor:
        """Loss of ``query`` (B, P, D), ``key`` (B, Q, D) and ``positive`` (B, P, Q); see :func:`point_contrast`."""
        return point_contrast(query, key, positive, self.temperature, normalized=self.normalized)

    def extra_repr(self) -> str:
        """Show the temperature in ``repr``."""
        return f"temperature={self.temperature}, normalized={self.normalized}"


def _mean_over_processes(images: Tensor) -> Tensor:
    """The number of images that count, as the mean over processes; a small positive one where there are none."""
    if is_distributed():
        images = images.clone()
        dist.all_reduce(images)
        images = images / dist.get_world_size()
    return torch.where(images > 0, images, 1)
