# SPDX-License-Identifier: Apache-2.0
"""The two losses of VoCo: tell a crop's place from its similarity to crops of known places, and keep those apart.

Wu, Zhuang, Chen, *VoCo: A Simple-yet-Effective Volume Contrastive Learning Framework for 3D Medical Image Analysis*,
CVPR 2024, arXiv 2402.17300, section 3. The paper's formulas and those of the released code differ; both are here.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_ssl.losses.contrast import full_precision
from monai_ssl.losses.distributed import DistributedKind

__all__ = ["BaseOrthogonalityLoss", "OverlapPredictionLoss", "base_orthogonality", "overlap_prediction"]

VoCoFormula = Literal["paper", "released"]

_EPS = 1e-6


@full_precision
def overlap_prediction(similarity: Tensor, overlap: Tensor, formula: VoCoFormula = "paper") -> Tensor:
    r"""Loss of cosine similarities that should be the shares by which crops overlap.

    With similarities :math:`l_{rj}` of crop r and base crop j, and overlaps :math:`y_{rj}`, ``"paper"`` is the mean,
    over images, crops and base crops, of

    .. math:: -\log(1 - |y_{rj} - l_{rj}|)

    ``"released"`` takes :math:`l^+ = \max(l, 0)`, weighs by the overlap, and treats base crops without overlap apart:

    .. math:: \frac{\sum_{rj} -y_{rj} \log(1 - |y_{rj} - l^+_{rj}|)}{\sum_{rj} y_{rj}}
        + \frac{\sum_{rj} [y_{rj} = 0] \, (l^+_{rj})^2}{\sum_{rj} [y_{rj} = 0]}

    for each image, and then averages over images. Arguments of the logarithm are kept at 1e-6 at least: there, and in
    ``"released"`` wherever a similarity is negative, an element has no gradient. Both are 0 for l = y. Computed in
    float32 (float64 for float64 similarities).

    Args:
        similarity: (B, R, N) cosines within [-1, 1].
        overlap: (B, R, N) within [0, 1].
        formula: ``"paper"`` or ``"released"``.

    Returns:
        Scalar, at least 0.

    Raises:
        ValueError: shapes differ or ``formula`` is unknown.

    Example:
        >>> round(overlap_prediction(torch.zeros(1, 1, 2), torch.tensor([[[0.5, 0.5]]])).item(), 4)  # log 2
        0.6931
    """
    _check_formula(formula)
    if similarity.ndim != 3 or similarity.shape != overlap.shape:
        raise ValueError(
            f"similarity and overlap must have one shape (B, R, N), got {tuple(similarity.shape)} and "
            f"{tuple(overlap.shape)}"
        )
    if formula == "paper":
        return -_log_closeness(similarity, overlap).mean()
    similarity = similarity.relu()
    near = -(overlap * _log_closeness(similarity, overlap)).sum((1, 2)) / overlap.sum((1, 2)).clamp(min=_EPS)
    apart = (overlap == 0).to(similarity.dtype)
    far = (apart * similarity.square()).sum((1, 2)) / apart.sum((1, 2)).clamp(min=1)
    return (near + far).mean()


@full_precision
def base_orthogonality(base: Tensor, formula: VoCoFormula = "paper") -> Tensor:
    r"""Regulariser that makes the features of an image's base crops orthogonal.

    The mean over all pairs i < j of an image, and over images, of :math:`|\cos(z_i, z_j)|` (``"paper"``), or of
    :math:`\max(\cos(z_i, z_j), 0)^2` without gradient to :math:`z_j` (``"released"``). 0 for orthogonal features, 1 for
    equal ones. Computed in float32 (float64 for float64 features).

    Args:
        base: (B, N, D) features, not normalised, N at least 2.
        formula: ``"paper"`` or ``"released"``.

    Returns:
        Scalar within [0, 1].

    Raises:
        ValueError: ``base`` has another shape, or ``formula`` is unknown.

    Example:
        >>> base_orthogonality(torch.eye(3)[None]).item(), round(base_orthogonality(torch.ones(1, 3, 4)).item(), 4)
        (0.0, 1.0)
    """
    _check_formula(formula)
    if base.ndim != 3 or base.shape[1] < 2:
        raise ValueError(f"base must have shape (B, N, D) with N >= 2, got {tuple(base.shape)}")
    unit = F.normalize(base, dim=2)
    partner = unit if formula == "paper" else unit.detach()
    i, j = torch.triu_indices(unit.shape[1], unit.shape[1], 1, device=unit.device)
    cosine = (unit @ partner.transpose(1, 2))[:, i, j]  # (B, N, N) -> (B, pairs), row i above column j
    return (cosine.abs() if formula == "paper" else cosine.relu().square()).mean()


class OverlapPredictionLoss(nn.Module):
    """Module face of :func:`overlap_prediction`.

    Every image stands for itself, so that under DistributedDataParallel the mean over processes is the whole batch's.

    Args:
        formula: ``"paper"`` or ``"released"``.

    Raises:
        ValueError: unknown ``formula``.
    """

    distribution: ClassVar[DistributedKind] = "local"

    def __init__(self, formula: VoCoFormula = "paper") -> None:
        super().__init__()
        _check_formula(formula)
        self.formula = formula

    def forward(self, similarity: Tensor, overlap: Tensor) -> Tensor:
        """Loss of ``similarity`` (B, R, N) and ``overlap`` (B, R, N); see :func:`overlap_prediction`."""
        return overlap_prediction(similarity, overlap, self.formula)

    def extra_repr(self) -> str:
        """Show the formula in ``repr``."""
        return f"formula={self.formula!r}"


class BaseOrthogonalityLoss(OverlapPredictionLoss):
    """Module face of :func:`base_orthogonality`; arguments as for :class:`OverlapPredictionLoss`."""

    def forward(self, base: Tensor) -> Tensor:
        """Loss of ``base`` (B, N, D); see :func:`base_orthogonality`."""
        return base_orthogonality(base, self.formula)


def _log_closeness(similarity: Tensor, overlap: Tensor) -> Tensor:
    return (1 - (overlap - similarity).abs()).clamp(min=_EPS).log()


def _check_formula(formula: str) -> None:
    if formula not in ("paper", "released"):
        raise ValueError(f"formula must be 'paper' or 'released', got {formula!r}")
