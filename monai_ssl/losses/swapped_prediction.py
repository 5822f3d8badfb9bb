# SPDX-License-Identifier: Apache-2.0
r"""Swapped prediction: from one crop of an image predict the clusters that another crop was assigned to.

Caron, Misra, Mairal, Goyal, Bojanowski, Joulin, *Unsupervised Learning of Visual Features by Contrasting Cluster
Assignments* (SwAV), NeurIPS 2020, arXiv 2006.09882, equations 1 and 2, and section 3.2 for many crops. With scores
s_v (cosines of crop v's features with the K prototypes), codes q_a of the assigning crops A, p_v = softmax(s_v / t):

.. math::
    L = \frac{1}{|A|} \sum_{a \in A} \frac{1}{V - 1} \sum_{v \neq a} - \sum_k q_a[k] \log p_v[k]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from monai_ssl.losses.contrast import check_temperature, full_precision
from monai_ssl.losses.distributed import DistributedKind
from monai_ssl.losses.sinkhorn import sinkhorn

__all__ = ["SwappedPredictionLoss", "swapped_prediction"]


@full_precision
def swapped_prediction(
    scores: Tensor,
    codes: Tensor,
    temperature: float | Tensor = 0.1,
    *,
    assigning: Sequence[int] | None = None,
    reduction: Literal["mean", "none"] = "mean",
) -> Tensor:
    """Cross-entropy between the codes of the assigning crops and the predictions from every other crop.

    Computed in float32 (float64 for float64 scores). Constant features give ``log K``; random ones about
    ``log K + 1 / (2 D t^2)``. Swapping crops, permuting samples or prototypes changes nothing.

    Args:
        scores: (V, B, K) of V >= 2 crops of the same B images.
        codes: (A, B, K) of the assigning crops, rows sum to 1; no gradient passes into them.
        temperature: t, a positive number, or a scalar tensor if it is learned.
        assigning: which crop each code belongs to; None: the first A.
        reduction: "mean" over the samples, or "none".

    Returns:
        Scalar, or (B,).

    Raises:
        ValueError: a shape, a crop's number, the temperature or the reduction does not fit.

    Example:
        >>> scores = torch.eye(3).expand(2, 3, 3)  # two crops of three images, each sure of its own prototype
        >>> round(swapped_prediction(scores, scores, temperature=1.0).item(), 4)  # log(e + 2) - 1
        0.5514
    """
    check_temperature(temperature)
    if scores.ndim != 3 or len(scores) < 2:
        raise ValueError(f"scores must have shape (V, B, K) with two or more crops, got {tuple(scores.shape)}")
    if codes.ndim != 3 or codes.shape[1:] != scores.shape[1:]:
        raise ValueError(
            f"codes must have shape (A, {scores.shape[1]}, {scores.shape[2]}) as the scores, got {tuple(codes.shape)}"
        )
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction must be 'mean' or 'none', got {reduction!r}")
    places = _checked_places(range(len(codes)) if assigning is None else assigning, len(codes), len(scores))
    codes = codes.detach().to(scores.dtype)
    losses = _SwappedCrossEntropies.apply(scores, codes, temperature, places) / (len(codes) * (len(scores) - 1))
    return losses.mean() if reduction == "mean" else losses


class SwappedPredictionLoss(nn.Module):
    """Codes by :func:`sinkhorn` and their prediction by :func:`swapped_prediction`, with the numbers of both.

    Each process averages over its own samples; the mean over processes is the whole batch's loss, as the codes are
    those of the whole batch.

    Args:
        temperature: t of the predictions, positive; 0.1 in SwAV.
        epsilon: of the codes, positive; 0.05 in SwAV.
        iterations: of the codes, at least 1; 3 in SwAV.

    Raises:
        ValueError: a number is out of its range.
    """

    distribution: ClassVar[DistributedKind] = "reduces_statistics"

    def __init__(self, temperature: float = 0.1, epsilon: float = 0.05, iterations: int = 3) -> None:
        super().__init__()
        check_temperature(temperature)
        if not epsilon > 0 or iterations < 1:
            raise ValueError(f"epsilon must be positive and iterations at least 1, got {epsilon} and {iterations}")
        self.temperature, self.epsilon, self.iterations = temperature, epsilon, iterations

    def assign(self, scores: Tensor, groups: Tensor | None = None, num_groups: int = 1) -> Tensor:
        """Return the codes (B, K) of scores (B, K), without gradient; see :func:`sinkhorn`."""
        return sinkhorn(scores, self.epsilon, self.iterations, groups=groups, num_groups=num_groups)

    def forward(
        self, scores: Tensor, codes: Tensor | None = None, reduction: Literal["mean", "none"] = "mean"
    ) -> Tensor:
        """Loss of scores (V, B, K) against codes (A, B, K) of the first A crops.

        Without codes the first two crops are assigned, each from its own scores.
        """
        if codes is None:
            codes = torch.stack([self.assign(crop) for crop in scores[:2]])
        return swapped_prediction(scores, codes, self.temperature, reduction=reduction)

    def extra_repr(self) -> str:
        """Show the settings in ``repr``."""
        return f"temperature={self.temperature}, epsilon={self.epsilon}, iterations={self.iterations}"


def _checked_places(assigning: Sequence[int], num_codes: int, num_crops: int) -> dict[int, int]:
    """Which code belongs to each assigning crop."""
    crops = [int(crop) for crop in assigning]
    if not crops or len(crops) != num_codes or len(set(crops)) < num_codes or not set(crops) <= set(range(num_crops)):
        raise ValueError(
            f"assigning must name another of the {num_crops} crops for each of the {num_codes} codes, got {crops}"
        )
    return {crop: place for place, crop in enumerate(crops)}


class _SwappedCrossEntropies(torch.autograd.Function):
    """Sum over crops of the cross-entropies (B,) with all codes but the crop's own.

    It keeps no matrix for the backward pass but scores and codes themselves, and computes the predictions again there;
    autograd's own chain would hold some four matrices of the scores' size more. Code after code is taken off, so that
    no sum of codes is needed either.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, codes: Tensor, temperature: float | Tensor, places: dict[int, int]) -> Tensor:
        masses = codes.sum(dim=2)  # (A, B)
        losses, log_sums = scores.new_zeros(scores.shape[1]), []
        for crop, own in enumerate(scores):
            logits = own / temperature
            highest = logits.amax(dim=1, keepdim=True)
            logits.sub_(highest)
            others = _others(codes, places, crop)
            products = [torch.einsum("bk,bk->b", codes[other], logits) for other in others]
            log_sum = logits.exp_().sum(dim=1).log_()
            for other, product in zip(others, products, strict=True):
                losses += masses[other] * log_sum - product
            log_sums.append(log_sum + highest.squeeze(1))
        ctx.save_for_backward(scores, codes, torch.as_tensor(temperature), masses, *log_sums)
        ctx.places = places
        return losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor | None, None]:
        scores, codes, temperature, masses, *log_sums = ctx.saved_tensors
        result = torch.empty_like(scores)
        factor = (grad / temperature)[:, None]
        for crop, (own, log_sum, out) in enumerate(zip(scores, log_sums, result, strict=True)):
            others = _others(codes, ctx.places, crop)
            torch.div(own, temperature, out=out).sub_(log_sum[:, None]).exp_()  # the predictions
            out.mul_(masses[others].sum(dim=0)[:, None])
            for other in others:
                out.sub_(codes[other])
            out.mul_(factor)
        by_temperature = None
        if ctx.needs_input_grad[2]:
            by_temperature = -torch.einsum("vbk,vbk->", result, scores) / temperature
        return result, None, by_temperature, None


def _others(codes: Tensor, places: dict[int, int], crop: int) -> list[int]:
    """Numbers of the codes that a crop predicts."""
    return [place for place in range(len(codes)) if place != places.get(crop)]
