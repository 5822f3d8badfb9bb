# SPDX-License-Identifier: Apache-2.0
r"""Sinkhorn's iterations: soft assignments of samples to prototypes that use all prototypes alike.

Cuturi, *Sinkhorn Distances*, NIPS 2013, algorithm 1, as SwAV uses it (Caron et al., arXiv 2006.09882, equations 3 to
5): among all Q whose prototypes have equal mass and whose samples have equal mass, the one that maximises
``tr(Q^T scores) + epsilon H(Q)`` is ``Diag(v) exp(scores / epsilon) Diag(u)``. Its factors are found by normalising
prototypes and samples in turn, for B samples and K prototypes::

    v_b = 1
    repeat:  u_k = 1 / sum_b v_b exp(scores_bk / epsilon)       every prototype gets the same mass
             v_b = 1 / sum_k u_k exp(scores_bk / epsilon)       every sample gets mass 1
    Q_bk = v_b exp(scores_bk / epsilon) u_k

The masses 1/K and 1/B of the paper only scale u and v, and cancel in B times Q.

Nothing overflows and nothing is emptied: with the highest logit m_k of each prototype and then r_b of each sample taken
off, ``P_bk = exp(scores_bk / epsilon - m_k - r_b)`` has a 1 in each column and in each row. The m_k are absorbed by
the first u_k, and the r_b are given back by starting from ``v_b = exp(r_b)``, which is at most 1. The factors then stay
within (B K)^n of 1 in n rounds, whatever the scores: 3 rounds are safe in float32, more are made in float64.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from monai_ssl.losses.contrast import full_precision
from monai_ssl.losses.distributed import is_distributed

__all__ = ["sinkhorn"]

_SAFE_ITERATIONS = 3


@torch.no_grad()
@full_precision
def sinkhorn(
    scores: Tensor,
    epsilon: float = 0.05,
    iterations: int = 3,
    *,
    groups: Tensor | None = None,
    num_groups: int = 1,
    reduce_distributed: bool = True,
) -> Tensor:
    """Codes of samples: which prototypes each belongs to, with equal use of all prototypes.

    The sums over samples run over the batches of all processes. Samples are normalised last, so their codes sum to 1 to
    the last digits, and the use of the prototypes is only about equal after few iterations. Computed in float32, more
    than 3 iterations in float64; float64 scores stay so.

    Args:
        scores: (B, K), larger is nearer; cosines in the papers. Processes may hold different numbers of samples, also
            none.
        epsilon: weight of the entropy, positive; 0.05 in SwAV. Smaller makes harder codes.
        iterations: at least 1; 3 in SwAV.
        groups: None or (B,) int64 numbers from 0 to ``num_groups`` - 1. The prototypes are then used alike *within each
            group*, as if each group were a batch of its own; a group without samples, here or anywhere, is no trouble.
        num_groups: number of groups, the same in all processes.
        reduce_distributed: sum over the processes, which all must then call this, the same number of times. False: each
            process sees its own batch only.

    Returns:
        (B, K) without gradient; rows sum to 1.

    Raises:
        ValueError: a shape or a number does not fit.

    Example:
        >>> codes = sinkhorn(torch.rand(8, 4), epsilon=1.0, iterations=50)
        >>> codes.sum(dim=1).allclose(torch.ones(8)), codes.sum(dim=0).allclose(torch.full((4,), 2.0))
        (True, True)
    """
    if scores.ndim != 2 or scores.shape[1] == 0:
        raise ValueError(f"scores must have shape (B, K) with K >= 1, got {tuple(scores.shape)}")
    if not epsilon > 0 or iterations < 1:
        raise ValueError(f"epsilon must be positive and iterations at least 1, got {epsilon} and {iterations}")
    if groups is None:
        num_groups = 1
    elif groups.shape != scores.shape[:1] or num_groups < 1:
        raise ValueError(
            f"groups must have shape ({len(scores)},) and num_groups be at least 1, got {tuple(groups.shape)} and "
            f"{num_groups}"
        )
    everywhere = reduce_distributed and is_distributed()
    dtype, scores = scores.dtype, scores.double() if iterations > _SAFE_ITERATIONS else scores
    members = _members(groups, num_groups, scores)  # (G, B)
    logits = scores / epsilon
    highest = _highest(logits, groups, num_groups, everywhere)  # (G, K)
    logits.sub_(highest if groups is None else highest[groups])
    own_highest = logits.amax(dim=1, keepdim=True)  # (B, 1), 0 or less
    kernel = logits.sub_(own_highest).exp_()
    sample = own_highest.exp_()
    for _ in range(iterations):
        mass = (members * sample.T) @ kernel  # (G, K)
        if everywhere:
            dist.all_reduce(mass, op=dist.ReduceOp.SUM)
        prototype = mass.clamp_(min=torch.finfo(mass.dtype).tiny).reciprocal_()  # a group without samples has no mass
        sums = kernel @ prototype.T  # (B, G)
        sample = (sums if groups is None else sums.gather(1, groups[:, None])).reciprocal_()
    codes = kernel.mul_(prototype if groups is None else prototype[groups])
    return codes.div_(codes.sum(dim=1, keepdim=True)).to(dtype)


def _members(groups: Tensor | None, num_groups: int, scores: Tensor) -> Tensor:
    """(G, B), 1 where the sample is of the group. A product with it adds in the same order every time."""
    if groups is None:
        return scores.new_ones(1, len(scores))
    return (groups == torch.arange(num_groups, device=scores.device)[:, None]).to(scores.dtype)


def _highest(logits: Tensor, groups: Tensor | None, num_groups: int, everywhere: bool) -> Tensor:
    """(B, K) -> (G, K), over the samples of each group in all processes; a low number for a group without any."""
    highest = logits.new_full((num_groups, logits.shape[1]), torch.finfo(logits.dtype).min)
    if groups is not None:
        highest.scatter_reduce_(0, groups[:, None].expand_as(logits), logits, "amax")
    elif len(logits):
        highest = logits.amax(dim=0, keepdim=True)
    if everywhere:
        dist.all_reduce(highest, op=dist.ReduceOp.MAX)
    return highest
