# SPDX-License-Identifier: Apache-2.0
r"""Supervised losses of batches in which not every sample, finding or voxel has a label: means over the known ones.

With y the labels, known or not, and S the known ones of the whole batch::

    cross entropy          L = sum_S w[y] CE(z, y) / sum_S w[y]                  (torch's weighted mean)
    binary cross entropy   L = sum_S BCE(z, y) / |S|
    Dice                   L = mean over classes c of 1 - (2 sum_S p_c [y = c] + e) / (sum_S p_c + sum_S [y = c] + e)

The soft Dice of softmax probabilities p is that of Milletari, Navab, Ahmadi, *V-Net*, 3DV 2016, arXiv 1606.04797,
section 3, without the squares, as MONAI's ``DiceLoss(batch=True)`` has it. What is not in S has no gradient, whatever
the network says there, NaN included; without any label all losses are 0.

Under DistributedDataParallel the processes hold different numbers of labels, while their gradients are averaged alike.
So S reaches over all processes here: sums are divided by the global count, times the number of processes.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from monai_ssl.losses.contrast import full_precision
from monai_ssl.losses.distributed import DistributedKind, all_gather, is_distributed

__all__ = [
    "IGNORED_LABEL",
    "MaskedBinaryCrossEntropyLoss",
    "MaskedCrossEntropyLoss",
    "MaskedDiceCrossEntropyLoss",
    "masked_binary_cross_entropy",
    "masked_cross_entropy",
    "masked_dice",
]

IGNORED_LABEL = 255
"""Value of a label map (uint8) that says: this voxel has no label."""


@full_precision
def masked_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor | None = None,
    known: Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Cross entropy of competing classes, mean over the known labels of all processes.

    Equal to ``torch.nn.functional.cross_entropy`` on the known ones alone; nothing is read back from the device.

    Args:
        logits: (B, K) or (B, K, \*spatial).
        labels: (B,) or (B, \*spatial) integers; a negative one is unknown. A known one that is K or more makes the loss
            NaN: a kernel can't raise.
        class_weights: (K,), positive.
        known: boolean, of the labels' shape; False makes a label unknown too.
        label_smoothing: in [0, 1).

    Returns:
        Scalar, at least 0; 0 without a known label.

    Raises:
        ValueError: if shapes do not fit.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0], [5.0, -5.0]])
        >>> round(masked_cross_entropy(logits, torch.tensor([1, -1])).item(), 4)  # log 2: the second has no label
        0.6931
    """
    if logits.ndim < 2 or labels.shape != logits.shape[:1] + logits.shape[2:]:
        raise ValueError(
            f"logits (B, K, *spatial) {tuple(logits.shape)} need labels (B, *spatial), got {tuple(labels.shape)}"
        )
    class_weights = None if class_weights is None else class_weights.to(logits.dtype)
    known = labels >= 0 if known is None else known & (labels >= 0)
    target = labels.clamp(0, logits.shape[1] - 1).long()
    logits = torch.where(known.unsqueeze(1), logits, 0.0)
    each = F.cross_entropy(logits, target, class_weights, reduction="none", label_smoothing=label_smoothing)
    each = torch.where(known & (labels >= logits.shape[1]), torch.nan, each)
    share = known.to(each.dtype) if class_weights is None else class_weights[target] * known
    return _mean_over_processes((each * known).sum(), share.sum())


@full_precision
def masked_binary_cross_entropy(logits: Tensor, labels: Tensor, positive_weights: Tensor | None = None) -> Tensor:
    r"""Binary cross entropy of findings that do not exclude each other, mean over the known labels of all processes.

    Args:
        logits: (B, K).
        labels: (B, K), 0 or 1, or a probability in between; negative or NaN is unknown. One above 1 makes the loss NaN.
        positive_weights: (K,), factor on the loss of positive labels, as torch's ``pos_weight``.

    Returns:
        Scalar, at least 0; 0 without a known label.

    Raises:
        ValueError: if shapes differ.
    """
    if logits.shape != labels.shape:
        raise ValueError(f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} must have one shape (B, K)")
    positive_weights = None if positive_weights is None else positive_weights.to(logits.dtype)
    known = labels >= 0  # NaN is not
    target = torch.where(known, labels, 0).to(logits.dtype)
    logits = torch.where(known, logits, 0.0)
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none", pos_weight=positive_weights)
    each = torch.where(labels > 1, torch.nan, each)
    return _mean_over_processes((each * known).sum(), known.sum().to(each.dtype))


@full_precision
def masked_dice(
    logits: Tensor,
    labels: Tensor,
    known: Tensor,
    class_weights: Tensor | None = None,
    *,
    include_background: bool = False,
    smooth: float = 1e-5,
) -> Tensor:
    r"""One minus the soft Dice over the known voxels of the batch in all processes, mean over classes.

    Equal to MONAI's ``DiceLoss(softmax=True, to_onehot_y=True, batch=True)`` on the known voxels alone.

    Args:
        logits: (B, C, \*spatial); class 0 is the background.
        labels: (B, \*spatial) integers 0 .. C - 1 where known.
        known: (B, \*spatial) bool.
        class_weights: (C,), factors on the classes' terms.
        include_background: count class 0 too.
        smooth: e; a class that neither occurs nor is predicted costs 0.

    Returns:
        Scalar; 0 without a known voxel.
    """
    classes = torch.arange(logits.shape[1], device=logits.device).view(1, -1, *[1] * (logits.ndim - 2))
    true = (labels.unsqueeze(1) == classes) & known.unsqueeze(1)  # (B, C, *spatial)
    predicted = torch.where(known.unsqueeze(1), torch.where(known.unsqueeze(1), logits, 0.0).softmax(1), 0.0)
    over = (0, *range(2, logits.ndim))
    sums = torch.stack(
        [(predicted * true).sum(over), predicted.sum(over), true.sum(over).to(predicted.dtype)]
    )  # (3, C)
    if is_distributed():
        sums = all_gather(sums[None]).sum(0)
    first = 0 if include_background else 1
    both, ours, theirs = sums[:, first:]
    each = 1 - (2 * both + smooth) / (ours + theirs + smooth)
    return (each if class_weights is None else each * class_weights[first:]).mean()


def _mean_over_processes(total: Tensor, count: Tensor) -> Tensor:
    """Divide by the count of all processes, so that the average over processes is the mean over the whole batch."""
    if is_distributed():
        count = count.detach().clone()
        dist.all_reduce(count)
        total = total * dist.get_world_size()
    return total / torch.where(count > 0, count, 1)


class MaskedCrossEntropyLoss(nn.Module):
    """Module face of :func:`masked_cross_entropy`.

    Args:
        class_weights: (K,) numbers, or None.
        label_smoothing: in [0, 1).

    Raises:
        ValueError: ``label_smoothing`` is out of its range.
    """

    distribution: ClassVar[DistributedKind] = "reduces_statistics"

    def __init__(self, class_weights: Tensor | list[float] | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        self.label_smoothing = label_smoothing
        self.register_buffer("class_weights", as_weights(class_weights), persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        r"""Loss of ``logits`` (B, K, \*spatial) and ``labels`` (B, \*spatial)."""
        return masked_cross_entropy(logits, labels, self.class_weights, label_smoothing=self.label_smoothing)


class MaskedBinaryCrossEntropyLoss(nn.Module):
    """Module face of :func:`masked_binary_cross_entropy`.

    Args:
        positive_weights: (K,) numbers, or None.
    """

    distribution: ClassVar[DistributedKind] = "reduces_statistics"

    def __init__(self, positive_weights: Tensor | list[float] | None = None) -> None:
        super().__init__()
        self.register_buffer("positive_weights", as_weights(positive_weights), persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of ``logits`` (B, K) and ``labels`` (B, K)."""
        return masked_binary_cross_entropy(logits, labels, self.positive_weights)


class MaskedDiceCrossEntropyLoss(nn.Module):
    """Dice plus cross entropy over the known voxels: MONAI's ``DiceCELoss(batch=True)`` for partly labelled batches.

    Args:
        include_background: count the background in the Dice part.
        dice_weight: of the Dice part, at least 0.
        ce_weight: of the cross entropy, at least 0.
        class_weights: (C,) numbers for both parts, background first, or None.

    Raises:
        ValueError: a weight is negative, or both are 0.
    """

    distribution: ClassVar[DistributedKind] = "reduces_statistics"

    def __init__(
        self,
        include_background: bool = False,
        dice_weight: float = 1.0,
        ce_weight: float = 1.0,
        class_weights: Tensor | list[float] | None = None,
    ) -> None:
        super().__init__()
        if dice_weight < 0 or ce_weight < 0 or dice_weight + ce_weight == 0:
            raise ValueError(
                f"dice_weight and ce_weight must be at least 0, and one above it, got {dice_weight} and {ce_weight}"
            )
        self.include_background = include_background
        self.dice_weight, self.ce_weight = dice_weight, ce_weight
        self.register_buffer("class_weights", as_weights(class_weights), persistent=False)

    def forward(self, logits: Tensor, labels: Tensor, known: Tensor | None = None) -> Tensor:
        r"""Loss of a segmentation.

        Args:
            logits: (B, C, \*spatial).
            labels: (B, 1, \*spatial) classes 0 .. C - 1; :data:`IGNORED_LABEL` or a negative number is unknown.
            known: boolean, (B, 1, \*spatial) or what expands to it; False makes voxels unknown too.

        Raises:
            ValueError: if shapes do not fit.
        """
        if labels.shape != (len(logits), 1, *logits.shape[2:]):
            raise ValueError(
                f"logits (B, C, *spatial) {tuple(logits.shape)} need labels (B, 1, *spatial), got {tuple(labels.shape)}"
            )
        counted = (labels != IGNORED_LABEL) & (labels >= 0)
        counted = (counted if known is None else counted & known)[:, 0]
        labels = labels[:, 0].long()
        # Both are computed in any case: all processes then meet in the same reductions.
        dice = masked_dice(logits, labels, counted, self.class_weights, include_background=self.include_background)
        entropy = masked_cross_entropy(logits, labels, self.class_weights, counted)
        return self.dice_weight * dice + self.ce_weight * entropy


def as_weights(weights: Tensor | list[float] | None) -> Tensor | None:
    """Return weights as a float32 tensor of their own."""
    return None if weights is None else torch.as_tensor(weights, dtype=torch.float32).clone()
