# SPDX-License-Identifier: Apache-2.0
r"""KoLeo: spread features evenly over the sphere, by the distance of each to its nearest neighbour.

Sablayrolles, Douze, Schmid, Jegou, *Spreading vectors for similarity search*, ICLR 2019, arXiv 1806.03198: the
entropy estimator of Kozachenko and Leonenko as a regulariser; with unit vectors in DINOv2 (arXiv 2304.07193, section
4)::

    L = -(1 / n) sum_i log d_i,     d_i = min over j != i of |x_i - x_j|
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from monai_ssl.losses.contrast import full_precision
from monai_ssl.losses.distributed import DistributedKind, all_gather, is_distributed

__all__ = ["KoLeoLoss", "koleo"]


@full_precision
def koleo(
    features: Tensor, *, normalized: bool = False, gather_distributed: bool = False, epsilon: float = 1e-8
) -> Tensor:
    r"""KoLeo loss of a batch (see the module's text).

    The distance is :math:`\sqrt{d_i^2 + \epsilon}`: of two equal images, which medical pools do hold, the loss is large
    but finite and its gradient 0, where log d has none. Computed in float32 (float64 for float64).

    Args:
        features: ``(B, D)``, one row an image.
        normalized: the rows already have unit length and are used as they are.
        gather_distributed: look for neighbours among the rows of all processes; the mean of their losses is then the
            loss of the whole batch, and so are the gradients. DINOv2's released code looks within each process.
        epsilon: added to the squared distance.

    Returns:
        Scalar, from -log 2 (of opposite vectors) to -log(epsilon) / 2.

    Raises:
        ValueError: ``features`` has another shape, or there is only one row, which has no neighbour.

    Example:
        >>> koleo(torch.eye(4)).item()  # all at the distance of the square root of 2
        -0.3465735912322998
    """
    if features.ndim != 2:
        raise ValueError(f"features must have shape (B, D), got {tuple(features.shape)}")
    if not normalized:
        features = F.normalize(features, dim=1)
    gathered, first = features, 0
    if gather_distributed and is_distributed():
        gathered, first = all_gather(features), dist.get_rank() * len(features)
    if len(gathered) < 2:
        raise ValueError("KoLeo needs at least two images: with one there is no neighbour")
    with torch.no_grad():
        cosines = features @ gathered.T  # (B, N)
        cosines.diagonal(first).fill_(-torch.inf)
        nearest = cosines.argmax(1)
    # From differences: 2 - 2 cos would lose the small distances to rounding.
    squared = (features - gathered[nearest]).square().sum(1)
    return -0.5 * (squared + epsilon).log().mean()


class KoLeoLoss(nn.Module):
    """Module face of :func:`koleo`.

    Args:
        gather_distributed: look for neighbours in all processes.
        normalized: the rows given to ``forward`` already have unit length.
    """

    distribution: ClassVar[DistributedKind] = "gathers_negatives"

    def __init__(self, gather_distributed: bool = True, normalized: bool = False) -> None:
        super().__init__()
        self.gather_distributed = gather_distributed
        self.normalized = normalized

    def forward(self, features: Tensor) -> Tensor:
        """Loss of the features (B, D); see :func:`koleo`."""
        return koleo(features, normalized=self.normalized, gather_distributed=self.gather_distributed)

    def extra_repr(self) -> str:
        """Show the settings in ``repr``."""
        return f"gather_distributed={self.gather_distributed}, normalized={self.normalized}"
