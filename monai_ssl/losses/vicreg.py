# SPDX-License-Identifier: Apache-2.0
r"""VICReg's loss: views agree (invariance), dimensions keep their spread (variance) and differ (covariance).

Bardes, Ponce, LeCun, *VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning*, ICLR 2022,
arXiv 2105.04906, section 4. With features Z and Z' of the two views, (n, d):

.. math::
    v(Z) &= \frac{1}{d} \sum_j \max\Big(0, \gamma - \sqrt{\mathrm{Var}(z^j) + \epsilon}\Big) \\
    c(Z) &= \frac{1}{d} \sum_{i \neq j} C(Z)_{ij}^2, \qquad
    C(Z) = \frac{1}{n - 1} \sum_k (z_k - \bar z) (z_k - \bar z)^T \\
    s(Z, Z') &= \frac{1}{n d} \sum_k \lVert z_k - z'_k \rVert^2 \\
    L &= \lambda s(Z, Z') + \mu (v(Z) + v(Z')) + \nu (c(Z) + c(Z'))

The invariance is a mean over dimensions too, as in the paper's pseudocode (algorithm 1), with which its weights
25, 25 and 1 belong; its equation 5 has no 1/d.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn.functional import mse_loss

from monai_ssl.losses.contrast import full_precision
from monai_ssl.losses.distributed import DistributedKind
from monai_ssl.losses.off_diagonal import gather_pair, off_diagonal_squares

__all__ = ["VICRegLoss", "vicreg", "vicreg_terms"]


@full_precision
def vicreg_terms(
    view_a: Tensor,
    view_b: Tensor,
    *,
    target_std: float = 1.0,
    eps: float = 1e-4,
    gather_distributed: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The three terms of the loss, without their weights, variance and covariance each the sum over both views.

    Computed in float32 (float64 for float64 features). Where the batch is less than half as large as D, no (D, D)
    matrix is formed, see :mod:`monai_ssl.losses.off_diagonal`.

    Args:
        view_a: (B, D) features of the first views.
        view_b: (B, D) features of the second views of the same samples.
        target_std: gamma, the standard deviation that each dimension should have over the batch.
        eps: added to the variance under the root; positive, or the gradient of a constant dimension is not finite.
        gather_distributed: take all terms over the batches of all processes. Each process then has the loss of the
            whole batch, and the gradients under DistributedDataParallel are those of the whole batch.

    Returns:
        Invariance s; variance v(Z) + v(Z'), in [0, 2 gamma]; covariance c(Z) + c(Z').

    Raises:
        ValueError: the shapes differ or are not (B, D), there is only one sample, or a number is not positive.
    """
    _check_positive(target_std=target_std, eps=eps)
    a, b = gather_pair(view_a, view_b, gather_distributed)
    invariance = mse_loss(a, b)
    variance = covariance = 0
    for z in (a, b):
        z = (z - z.mean(dim=0)) / (len(z) - 1) ** 0.5
        std = (z.square().sum(dim=0) + eps).sqrt()
        variance = variance + (target_std - std).relu().mean()
        covariance = covariance + off_diagonal_squares(z, z) / z.shape[1]
    return invariance, variance, covariance


def vicreg(
    view_a: Tensor,
    view_b: Tensor,
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
    *,
    target_std: float = 1.0,
    eps: float = 1e-4,
    gather_distributed: bool = False,
) -> Tensor:
    """VICReg's loss.

    Args:
        view_a: (B, D) features of the first views.
        view_b: (B, D) features of the second views of the same samples.
        invariance_weight: lambda.
        variance_weight: mu.
        covariance_weight: nu.
        target_std: see :func:`vicreg_terms`.
        eps: likewise.
        gather_distributed: likewise.

    Returns:
        Scalar, at least 0. For features that are all equal it is ``2 mu (gamma - sqrt(eps))``, 49.5 with the defaults:
        a loss that stays there is a collapse.

    Raises:
        ValueError: as :func:`vicreg_terms`.

    Example:
        >>> import torch
        >>> round(vicreg(torch.ones(8, 4), torch.ones(8, 4)).item(), 4)
        49.5
    """
    invariance, variance, covariance = vicreg_terms(
        view_a, view_b, target_std=target_std, eps=eps, gather_distributed=gather_distributed
    )
    return invariance_weight * invariance + variance_weight * variance + covariance_weight * covariance


class VICRegLoss(nn.Module):
    """Module face of :func:`vicreg`.

    Args:
        invariance_weight: lambda, at least 0.
        variance_weight: mu, at least 0.
        covariance_weight: nu, at least 0.
        target_std: see :func:`vicreg_terms`.
        eps: likewise.
        gather_distributed: take the statistics over the batches of all processes.

    Raises:
        ValueError: a number is out of its range.
    """

    distribution: ClassVar[DistributedKind] = "reduces_statistics"

    def __init__(
        self,
        invariance_weight: float = 25.0,
        variance_weight: float = 25.0,
        covariance_weight: float = 1.0,
        target_std: float = 1.0,
        eps: float = 1e-4,
        gather_distributed: bool = True,
    ) -> None:
        super().__init__()
        self.weights = (invariance_weight, variance_weight, covariance_weight)
        if min(self.weights) < 0:
            raise ValueError(f"the weights must be at least 0, got {self.weights}")
        _check_positive(target_std=target_std, eps=eps)
        self.target_std, self.eps, self.gather_distributed = target_std, eps, gather_distributed

    def forward(self, view_a: Tensor, view_b: Tensor) -> Tensor:
        """Loss of the views ``view_a`` (B, D) and ``view_b`` (B, D)."""
        return self.weigh(*self.terms(view_a, view_b))

    def terms(self, view_a: Tensor, view_b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Invariance, variance and covariance by themselves, see :func:`vicreg_terms`."""
        return vicreg_terms(
            view_a,
            view_b,
            target_std=self.target_std,
            eps=self.eps,
            gather_distributed=self.gather_distributed,
        )

    def weigh(self, invariance: Tensor, variance: Tensor, covariance: Tensor) -> Tensor:
        """Weighted sum of the terms."""
        return sum(weight * term for weight, term in zip(self.weights, (invariance, variance, covariance), strict=True))

    def extra_repr(self) -> str:
        """Show the settings in ``repr``."""
        return (
            f"weights={self.weights}, target_std={self.target_std}, eps={self.eps}, "
            f"gather_distributed={self.gather_distributed}"
        )


def _check_positive(**numbers: float) -> None:
    for name, value in numbers.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
