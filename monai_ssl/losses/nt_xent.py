# SPDX-License-Identifier: Apache-2.0
"""NT-Xent, the contrastive loss of SimCLR: every other view in the (gathered) batch is a negative.

Chen, Kornblith, Norouzi, Hinton, *A Simple Framework for Contrastive Learning of Visual Representations*, ICML 2020,
equation 1.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from monai_ssl.losses.contrast import check_temperature, full_precision, log_sum_exp_of_products
from monai_ssl.losses.distributed import DistributedKind, all_gather, is_distributed

__all__ = ["NTXentLoss", "nt_xent"]


@full_precision
def nt_xent(
    view_a: Tensor,
    view_b: Tensor,
    temperature: float | Tensor = 0.5,
    *,
    normalized: bool = False,
    gather_distributed: bool = False,
) -> Tensor:
    r"""NT-Xent loss over the ``2B`` views of a batch.

    For an anchor ``z`` with partner ``p``, over all other views ``n`` of other samples:

    .. math:: L(z) = -\log \frac{e^{z \cdot p / t}}{e^{z \cdot p / t} + \sum_n e^{z \cdot n / t}}

    Computed in float32 (float64 for float64 features) by one matrix product. The value is that of MONAI's
    ``ContrastiveLoss``. With equal features it is ``log(2B - 1)``.

    Args:
        view_a: ``(B, D)`` features of the first views.
        view_b: ``(B, D)`` features of the second views of the same samples.
        temperature: ``t``, a positive number, or a scalar tensor if it is learned.
        normalized: the rows already have unit length and are used as they are.
        gather_distributed: in a group of ``W`` processes, contrast the own ``2B`` views with all ``2WB``; the mean of
            the processes' losses is then the loss of the whole batch, and so are the gradients.

    Returns:
        Scalar.

    Raises:
        ValueError: if shapes differ, there is only one sample (no negatives), or the temperature is not positive.

    Example:
        >>> x = torch.ones(4, 8)
        >>> round(nt_xent(x, x).exp().item(), 4)  # 2 * 4 - 1 equal candidates
        7.0
    """
    check_temperature(temperature)
    if view_a.ndim != 2 or view_a.shape != view_b.shape:
        raise ValueError(
            f"view_a and view_b must have one shape (B, D), got {tuple(view_a.shape)} and {tuple(view_b.shape)}"
        )
    if not normalized:
        view_a, view_b = F.normalize(view_a, dim=1), F.normalize(view_b, dim=1)
    pairs = torch.stack([view_a, view_b], dim=1)  # (B, 2, D)
    gathered, first = pairs, 0
    if gather_distributed and is_distributed():
        gathered, first = all_gather(pairs), dist.get_rank() * len(pairs)  # (N, 2, D), own rows start at `first`
    batch, total = len(pairs), len(gathered)
    if total < 2:
        raise ValueError("NT-Xent needs at least two samples: with one there are no negatives")

    def exclude_own_views_(logits: Tensor) -> None:  # neither the anchor itself nor its partner is a negative
        logits.view(batch, 2, total, 2).diagonal(first, dim1=0, dim2=2).fill_(-torch.inf)

    anchors = pairs.flatten(0, 1) / temperature  # (2B, D)
    negatives = log_sum_exp_of_products(anchors, gathered.flatten(0, 1), exclude_own_views_).view(batch, 2)
    positives = (view_a * view_b).sum(dim=1, keepdim=True) / temperature  # (B, 1), the same in both directions
    return F.softplus(negatives - positives).mean()


class NTXentLoss(nn.Module):
    """Module face of :func:`nt_xent`.

    Args:
        temperature: positive; 0.5 in SimCLR's CIFAR runs, 0.1 in its ImageNet runs.
        gather_distributed: use the views of all processes as negatives.
        normalized: the rows given to ``forward`` already have unit length.
    """

    distribution: ClassVar[DistributedKind] = "gathers_negatives"

    def __init__(self, temperature: float = 0.5, gather_distributed: bool = True, normalized: bool = False) -> None:
        super().__init__()
        check_temperature(temperature)
        self.temperature = temperature
        self.gather_distributed = gather_distributed
        self.normalized = normalized

    def forward(self, view_a: Tensor, view_b: Tensor) -> Tensor:
        """Loss of the views ``view_a`` (B, D) and ``view_b`` (B, D); see :func:`nt_xent`."""
        return nt_xent(
            view_a,
            view_b,
            self.temperature,
            normalized=self.normalized,
            gather_distributed=self.gather_distributed,
        )

    def extra_repr(self) -> str:
        """Show the settings in ``repr``."""
        return (
            f"temperature={self.temperature}, gather_distributed={self.gather_distributed}, "
            f"normalized={self.normalized}"
        )
