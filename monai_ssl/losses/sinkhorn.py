# SPDX-License-Identifier: Apache-2.0
r"""Sinkhorn's iterations: soft assignments of samples to prototypes that use all prototypes alike.

Cuturi, *Sinkhorn Distances*, NIPS 2013, algorithm 1, as SwAV uses it (Caron et al., arXiv 2006.09882, equations 3 to
5): among all Q whose prototypes have equal mass and whose samples have equal mass, the one that maximises
``tr(Q^T scores) + epsilon H(Q)`` is ``Diag(u) exp(scores / epsilon) Diag(v)``. Its factors are found by normalising
prototypes and samples in turn. With S = scores / epsilon, B samples and K prototypes, in logarithms::

    v_b = 0
    repeat:  u_k = log sum_b exp(S_bk - v_b)        every prototype gets the same mass
              v_b = log sum_k exp(S_bk - u_k)        every sample gets mass 1
    Q_bk = exp(S_bk - u_k - v_b)

The masses 1/K and 1/B of the paper only add constants to u and v, which cancel in Q times B.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from monai_ssl.losses.contrast import full_precision
from monai_ssl.losses.distributed import is_distributed

__all__ = ["sinkhorn"]


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
    the last digits, and the use of the prototypes is only about equal after few iterations. In logarithms and float32
    (float64 for float64 scores): no epsilon and no range of scores overflows or empties a sample.

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
    logits = scores / epsilon
    rest = logits  # S_bk - v_b
    for iteration in range(iterations):
        over_samples = _log_sum_exp_over_samples(rest, groups, num_groups, everywhere)  # (G, K)
        rest = logits - (over_samples if groups is None else over_samples[groups])  # S_bk - u_k
        if iteration + 1 < iterations:
            rest = logits - rest.logsumexp(dim=1, keepdim=True)
    return rest.softmax(dim=1)


def _log_sum_exp_over_samples(x: Tensor, groups: Tensor | None, num_groups: int, everywhere: bool) -> Tensor:
    """(B, K) -> (G, K), over the samples of each group in all processes; -inf for a group without any."""
    highest = x.new_full((num_groups, x.shape[1]), -torch.inf)
    if groups is not None:
        highest.scatter_reduce_(0, groups[:, None].expand_as(x), x, "amax")
    elif len(x):
        highest = x.amax(dim=0, keepdim=True)
    if everywhere:
        dist.all_reduce(highest, op=dist.ReduceOp.MAX)
    highest.clamp_(min=torch.finfo(x.dtype).min)  # of a group without samples: a number, so that nothing is NaN
    if groups is None:
        total = (x - highest).exp_().sum(dim=0, keepdim=True)
    else:
        # A product with the groups' indicators: unlike index_add, it adds in the same order every time.
        members = (groups == torch.arange(num_groups, device=x.device)[:, None]).to(x.dtype)  # (G, B)
        total = members @ (x - highest[groups]).exp_()
    if everywhere:
        dist.all_reduce(total, op=dist.ReduceOp.SUM)
    return total.log_().add_(highest)
