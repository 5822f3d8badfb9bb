# SPDX-License-Identifier: Apache-2.0
"""InfoNCE of queries against their keys and a set of negatives, such as a feature queue.

Oord, Li, Vinyals, *Representation Learning with Contrastive Predictive Coding*, arXiv 1807.03748, equation 4, with the
cosine logits and the temperature of He et al., *Momentum Contrast*, CVPR 2020, equation 1.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_ssl.losses.contrast import check_temperature, full_precision, log_sum_exp_of_products, prepare_contrast
from monai_ssl.losses.distributed import DistributedKind

__all__ = ["InfoNCELoss", "info_nce"]


@full_precision
def info_nce(
    query: Tensor,
    key: Tensor,
    negatives: Tensor,
    temperature: float | Tensor = 0.07,
    *,
    normalized: bool = False,
    negative_mask: Tensor | None = None,
) -> Tensor:
    r"""InfoNCE loss, averaged over the queries.

    .. math::
        L_i = -\log \frac{e^{q_i \cdot k_i / t}}{e^{q_i \cdot k_i / t} + \sum_j e^{q_i \cdot n_j / t}}
            = \operatorname{softplus}\Big(\log \sum_j e^{q_i \cdot n_j / t} - q_i \cdot k_i / t\Big)

    The second form needs no concatenation of logits and keeps the small losses of easy samples exact. Computed in
    float32 (float64 for float64 queries). With equal logits the loss is ``log(K + 1)``.

    Args:
        query: ``(B, D)`` features.
        key: ``(B, D)`` features, row ``i`` is the positive of query ``i``.
        negatives: ``(K, D)`` features, shared by all queries; detach them if they are a queue (which may then be
            changed in place before ``backward``, no copy is needed).
        temperature: ``t``, a positive number, or a scalar tensor if it is learned.
        normalized: the rows already have unit length and are used as they are.
        negative_mask: boolean ``(B, K)``, True where a negative is excluded for that query (a known false negative,
            for instance another image of the same patient). A query without negatives has loss 0.

    Returns:
        Scalar.

    Raises:
        ValueError: if shapes do not fit or the temperature is not positive.

    Example:
        >>> q, k, queue = torch.eye(3)[:2], torch.eye(3)[:2], torch.eye(3)[2:]
        >>> round(info_nce(q, k, queue, temperature=1.0).item(), 4)  # log(1 + exp(0 - 1))
        0.3133
    """
    query, key, negatives = prepare_contrast(query, key, negatives, temperature, normalized, negative_mask)

    def exclude_(logits: Tensor) -> None:  # finite, so that a row without negatives gives 0 and not NaN
        if negative_mask is not None:
            logits.masked_fill_(negative_mask, torch.finfo(logits.dtype).min)

    positive = (query * key).sum(dim=1)  # (B,)
    return F.softplus(log_sum_exp_of_products(query, negatives, exclude_) - positive).mean()


class InfoNCELoss(nn.Module):
    """Module face of :func:`info_nce`.

    Under DistributedDataParallel each process averages over its own queries; the mean over processes is the whole
    batch's loss as long as all processes hold the same negatives (gather the keys before they enter the queue).

    Args:
        temperature: positive; 0.07 in MoCo and C2L, 0.2 in MoCo v2.
        normalized: the rows given to ``forward`` already have unit length.
    """

    distribution: ClassVar[DistributedKind] = "local"

    def __init__(self, temperature: float = 0.07, normalized: bool = False) -> None:
        super().__init__()
        check_temperature(temperature)
        self.temperature = temperature
        self.normalized = normalized

    def forward(self, query: Tensor, key: Tensor, negatives: Tensor, negative_mask: Tensor | None = None) -> Tensor:
        """Loss of ``query`` (B, D) against ``key`` (B, D) and ``negatives`` (K, D); see :func:`info_nce`."""
        return info_nce(
            query, key, negatives, self.temperature, normalized=self.normalized, negative_mask=negative_mask
        )

    def extra_repr(self) -> str:
        """Show the temperature in ``repr``."""
        return f"temperature={self.temperature}, normalized={self.normalized}"
