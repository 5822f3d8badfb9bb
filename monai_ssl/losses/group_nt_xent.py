# SPDX-License-Identifier: Apache-2.0
"""NT-Xent with groups: every other view of the same group, a patient say, is a positive.

Khosla, Teterwak, Wang, Sarna, Tian, Isola, Maschinot, Liu, Krishnan, *Supervised Contrastive Learning*, NeurIPS 2020,
equation 2, with groups in place of classes. That two images of one patient are positives, without any label: Azizi et
al., *Big Self-Supervised Models Advance Medical Image Classification*, ICCV 2021, arXiv 2101.05224.

A second number for each sample leaves false negatives out: with the patient there and, say, the examination as group,
images of another examination of the same patient are neither positives nor negatives.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from monai_ssl.losses.contrast import check_temperature, full_precision, log_sum_exp_of_products
from monai_ssl.losses.distributed import all_gather, is_distributed
from monai_ssl.losses.nt_xent import NTXentLoss

__all__ = ["GroupNTXentLoss", "group_nt_xent"]


@full_precision
def group_nt_xent(
    view_a: Tensor,
    view_b: Tensor,
    groups: Tensor,
    temperature: float | Tensor = 0.5,
    *,
    exclude: Tensor | None = None,
    normalized: bool = False,
    gather_distributed: bool = False,
) -> Tensor:
    r"""NT-Xent loss over the ``2B`` views of a batch in which samples of one group belong together.

    For an anchor ``z`` with the other views ``P`` of its group, over all other views ``a`` of the batch that are not
    left out by ``exclude``:

    .. math:: L(z) = -\frac{1}{|P|} \sum_{p \in P} \log \frac{e^{z \cdot p / t}}{\sum_a e^{z \cdot a / t}}

    Where every sample is a group of its own this is :func:`monai_ssl.losses.nt_xent`. Where a batch leaves an anchor no
    negatives (all its samples are of one group, or left out) its loss stays finite, at least ``log |P|``, and only
    pulls its group together. Computed in float32 (float64 for float64 features).

    Args:
        view_a: ``(B, D)`` features of the first views.
        view_b: ``(B, D)`` features of the second views of the same samples.
        groups: ``(B,)`` integers; equal numbers belong together.
        temperature: ``t``, a positive number, or a scalar tensor if it is learned.
        exclude: ``(B,)`` integers; samples of equal numbers that are not of one group are left out of each other's
            sums (known false negatives: other images of the patient). None: nothing is left out.
        normalized: the rows already have unit length and are used as they are.
        gather_distributed: contrast with, and look for the group in, the views of all processes; the mean of the
            processes' losses is then the loss of the whole batch, and so are the gradients.

    Returns:
        Scalar.

    Raises:
        ValueError: if shapes differ, there is only one sample (no negatives), or the temperature is not positive.

    Example:
        >>> x = torch.eye(4)
        >>> apart, together = (group_nt_xent(x, x, torch.tensor(g)).item() for g in ([0, 1, 2, 3], [0, 0, 1, 1]))
        >>> apart < together  # two samples of one group that look different cost something
        True
    """
    check_temperature(temperature)
    if view_a.ndim != 2 or view_a.shape != view_b.shape or groups.shape != view_a.shape[:1]:
        raise ValueError(
            "view_a and view_b must have one shape (B, D) and groups (B,), got "
            f"{tuple(view_a.shape)}, {tuple(view_b.shape)} and {tuple(groups.shape)}"
        )
    if exclude is not None and exclude.shape != groups.shape:
        raise ValueError(f"exclude must have the shape of groups {tuple(groups.shape)}, got {tuple(exclude.shape)}")
    if not normalized:
        view_a, view_b = F.normalize(view_a, dim=1), F.normalize(view_b, dim=1)
    anchors, first = torch.cat([view_a, view_b]), 0  # (2B, D)
    codes = groups[None] if exclude is None else torch.stack([groups, exclude])
    codes = codes.repeat(1, 2)  # (1 or 2, 2B): group, and perhaps what it must not be told from
    candidates, candidate_codes = anchors, codes
    if gather_distributed and is_distributed():
        candidates, candidate_codes = all_gather(anchors), all_gather(codes.T).T  # 2N columns, own ones from `first`
        first = dist.get_rank() * len(anchors)
    if len(candidates) < 4:
        raise ValueError("NT-Xent needs at least two samples: with one there are no negatives")
    same = codes[0][:, None] == candidate_codes[0]  # (2B, 2N), the anchor itself included

    def exclude_(logits: Tensor) -> None:
        if exclude is not None:
            left_out = codes[1][:, None] == candidate_codes[1]
            logits.masked_fill_(left_out.logical_and_(~same), -torch.inf)
        logits.diagonal(first).fill_(-torch.inf)

    all_others = log_sum_exp_of_products(anchors / temperature, candidates, exclude_)
    same = same.to(anchors.dtype)
    positives = (same @ candidates - anchors) / (same.sum(dim=1, keepdim=True) - 1)  # (2B, D), mean over P
    return (all_others - (anchors * positives).sum(dim=1) / temperature).mean()


class GroupNTXentLoss(NTXentLoss):
    """Module face of :func:`group_nt_xent`; its arguments are those of :class:`monai_ssl.losses.NTXentLoss`."""

    def forward(self, view_a: Tensor, view_b: Tensor, groups: Tensor, exclude: Tensor | None = None) -> Tensor:
        """Loss of the views ``view_a`` and ``view_b`` (B, D) of samples in ``groups`` and ``exclude`` (B,)."""
        return group_nt_xent(
            view_a,
            view_b,
            groups,
            self.temperature,
            exclude=exclude,
            normalized=self.normalized,
            gather_distributed=self.gather_distributed,
        )
