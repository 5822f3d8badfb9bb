# SPDX-License-Identifier: Apache-2.0
r"""The loss of Barlow Twins: two views' features agree in each dimension, and no two dimensions say the same.

Zbontar, Jing, Misra, LeCun, Deny, *Barlow Twins: Self-Supervised Learning via Redundancy Reduction*, ICML 2021, arXiv
2103.03230, equations 1 and 2. With features A and B of the two views, each dimension centred over the batch:

.. math::
    C_{ij} = \frac{\sum_n a_{ni} b_{nj}}{\sqrt{\sum_n a_{ni}^2} \sqrt{\sum_n b_{nj}^2}}, \qquad
    L = \sum_i (1 - C_{ii})^2 + \lambda \sum_{i \neq j} C_{ij}^2
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from monai_ssl.losses.contrast import full_precision
from monai_ssl.losses.distributed import DistributedKind
from monai_ssl.losses.off_diagonal import gather_pair, off_diagonal_squares

__all__ = ["RedundancyReductionLoss", "redundancy_reduction", "redundancy_terms"]


@full_precision
def redundancy_terms(
    view_a: Tensor, view_b: Tensor, *, eps: float = 1e-5, gather_distributed: bool = False
) -> tuple[Tensor, Tensor]:
    """The two sums of the loss, without the weight between them.

    Computed in float32 (float64 for float64 features). Where the batch is less than half as large as D, no (D, D)
    matrix is formed, see :mod:`monai_ssl.losses.off_diagonal`.

    Args:
        view_a: (B, D) features of the first views.
        view_b: (B, D) features of the second views of the same samples.
        eps: added to each dimension's variance, as batch normalisation does; positive. It keeps a dimension that is
            constant over the batch finite (its correlations are then 0).
        gather_distributed: take the correlation over the batches of all processes. Each process then has the loss of
            the whole batch, and the gradients under DistributedDataParallel are those of the whole batch.

    Returns:
        Invariance, the sum over i of ``(1 - C_ii)^2``, in [0, 4 D]; redundancy, the sum over i != j of ``C_ij^2``.

    Raises:
        ValueError: the shapes differ or are not (B, D), there is only one sample, or ``eps`` is not positive.
    """
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps}")
    a, b = (_standardized(x, eps) for x in gather_pair(view_a, view_b, gather_distributed))
    invariance = (1 - (a * b).sum(dim=0)).square().sum()
    return invariance, off_diagonal_squares(a, b)


def redundancy_reduction(
    view_a: Tensor,
    view_b: Tensor,
    redundancy_weight: float = 5e-3,
    *,
    eps: float = 1e-5,
    gather_distributed: bool = False,
) -> Tensor:
    """Barlow Twins' loss.

    Args:
        view_a: (B, D) features of the first views.
        view_b: (B, D) features of the second views of the same samples.
        redundancy_weight: lambda, at least 0.
        eps: see :func:`redundancy_terms`.
        gather_distributed: likewise.

    Returns:
        Scalar, at least 0: 0 where both views agree and all dimensions are uncorrelated. For independent features of
        the two views it is about ``D + (D^2 / B) * redundancy_weight``.

    Raises:
        ValueError: as :func:`redundancy_terms`, or ``redundancy_weight`` is negative.

    Example:
        >>> x = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])  # uncorrelated dimensions
        >>> round(redundancy_reduction(x, x).item(), 4), round(redundancy_reduction(x, -x).item(), 4)
        (0.0, 7.9999)
    """
    _check_weight(redundancy_weight)
    invariance, redundancy = redundancy_terms(view_a, view_b, eps=eps, gather_distributed=gather_distributed)
    return invariance + redundancy_weight * redundancy


class RedundancyReductionLoss(nn.Module):
    """Module face of :func:`redundancy_reduction`.

    MONAI's ``BarlowTwinsLoss`` scales by the unbiased standard deviation and divides by B, so that equal views have a
    diagonal of (B - 1) / B instead of 1, forms the (D, D) matrix several times (64 samples of 8192 dimensions, forward
    and back on one CPU core: 8.7 s, here 0.05 s), and knows the own process's batch only. With ``C (B - 1) / B`` in
    place of C the values agree.

    Args:
        redundancy_weight: lambda, at least 0.
        eps: see :func:`redundancy_terms`.
        gather_distributed: take the correlation over the batches of all processes.

    Raises:
        ValueError: a number is out of its range.
    """

    distribution: ClassVar[DistributedKind] = "reduces_statistics"

    def __init__(self, redundancy_weight: float = 5e-3, eps: float = 1e-5, gather_distributed: bool = True) -> None:
        super().__init__()
        _check_weight(redundancy_weight)
        self.redundancy_weight, self.eps, self.gather_distributed = redundancy_weight, eps, gather_distributed

    def forward(self, view_a: Tensor, view_b: Tensor) -> Tensor:
        """Loss of the views ``view_a`` (B, D) and ``view_b`` (B, D)."""
        invariance, redundancy = self.terms(view_a, view_b)
        return invariance + self.redundancy_weight * redundancy

    def terms(self, view_a: Tensor, view_b: Tensor) -> tuple[Tensor, Tensor]:
        """Invariance and redundancy by themselves, see :func:`redundancy_terms`."""
        return redundancy_terms(view_a, view_b, eps=self.eps, gather_distributed=self.gather_distributed)

    def extra_repr(self) -> str:
        """Show the settings in ``repr``."""
        return (
            f"redundancy_weight={self.redundancy_weight}, eps={self.eps}, gather_distributed={self.gather_distributed}"
        )


def _standardized(x: Tensor, eps: float) -> Tensor:
    """Centre each dimension of (N, D) and divide it by sqrt(N (variance + eps)): columns of about unit length."""
    var, mean = torch.var_mean(x, dim=0, correction=0)
    return (x - mean) * torch.rsqrt(len(x) * (var + eps))


def _check_weight(weight: float) -> None:
    if weight < 0:
        raise ValueError(f"redundancy_weight must be at least 0, got {weight}")
