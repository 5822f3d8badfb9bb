# SPDX-License-Identifier: Apache-2.0
"""What the contrastive losses share: full precision, checked unit vectors, and a lean log-sum-exp of their products."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["check_temperature", "full_precision", "log_sum_exp_of_products", "prepare_contrast"]


def full_precision(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make a loss compute in float32 under autocast and for half-precision inputs; float64 stays float64.

    With a temperature of 0.05 the exponentials of cosine logits reach ``exp(20)``, beyond float16, and bfloat16 keeps
    two to three digits of them, so this is the place where half precision must end.
    """

    def widen(value):
        narrow = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
        return value.float() if narrow else value

    @functools.wraps(loss)
    def wrapper(first: Tensor, *args, **kwargs) -> Tensor:
        with torch.autocast(first.device.type, enabled=False):
            return loss(widen(first), *map(widen, args), **{name: widen(value) for name, value in kwargs.items()})

    return wrapper


def check_temperature(temperature: float | Tensor) -> None:
    """Refuse a temperature that is not positive; a learned one (a tensor) is not read back from its device."""
    if not isinstance(temperature, Tensor) and not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")


def prepare_contrast(
    query: Tensor,
    key: Tensor,
    negatives: Tensor,
    temperature: float | Tensor,
    normalized: bool,
    negative_mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Check the inputs of a loss with separate negatives, bring rows to unit length, divide queries by temperature.

    Args:
        query: ``(B, D)``.
        key: ``(B, D)``.
        negatives: ``(K, D)``.
        temperature: positive number, or a scalar tensor.
        normalized: the rows already have unit length.
        negative_mask: None or boolean ``(B, K)``, checked only.

    Returns:
        ``query / temperature``, ``key`` and ``negatives`` in the query's dtype.

    Raises:
        ValueError: if shapes do not fit, the mask is not boolean, or the temperature is not positive.
    """
    check_temperature(temperature)
    if query.ndim != 2 or key.shape != query.shape:
        raise ValueError(f"query and key must have one shape (B, D), got {tuple(query.shape)} and {tuple(key.shape)}")
    if negatives.ndim != 2 or negatives.shape[1] != query.shape[1] or len(negatives) == 0:
        raise ValueError(f"negatives must have shape (K, {query.shape[1]}) with K >= 1, got {tuple(negatives.shape)}")
    expected = (len(query), len(negatives))
    if negative_mask is not None and (negative_mask.dtype != torch.bool or negative_mask.shape != expected):
        raise ValueError(
            f"negative_mask must be boolean with shape {expected} (True = excluded), "
            f"got {negative_mask.dtype} {tuple(negative_mask.shape)}"
        )
    key, negatives = key.to(query.dtype), negatives.to(query.dtype)
    if not normalized:
        query, key, negatives = (F.normalize(x, dim=1) for x in (query, key, negatives))
    return query / temperature, key, negatives  # scaling (B, D) is cheaper than scaling (B, K)


def log_sum_exp_of_products(
    anchors: Tensor, candidates: Tensor, exclude_: Callable[[Tensor], object] | None = None
) -> Tensor:
    """``log sum_j exp(a_i . c_j)`` for every anchor, holding one ``(N, M)`` matrix in forward and backward together.

    The plain ``torch.logsumexp(anchors @ candidates.T, 1)`` holds four at its peak and computes the exponentials twice.
    Candidates without gradient (a feature queue) are not kept for the backward pass: they may be changed in place
    before it, without a copy.

    Args:
        anchors: ``(N, D)``, or ``(B, N, D)`` for B sets that do not meet.
        candidates: ``(M, D)``, or ``(B, M, D)``.
        exclude_: sets the logits ``(N, M)``, or ``(B, N, M)``, that must not count to a very low number, in place.
            Their probability is 0 and with it their gradient, so autograd need not know.

    Returns:
        ``(N,)`` or ``(B, N)``, differentiable once with respect to anchors and candidates.
    """
    return _LogSumExpOfProducts.apply(anchors, candidates, exclude_)


class _LogSumExpOfProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, anchors: Tensor, candidates: Tensor, exclude_) -> Tensor:
        logits = anchors @ candidates.mT
        if exclude_ is not None:
            exclude_(logits)
        highest = logits.amax(dim=-1, keepdim=True)
        probabilities = logits.sub_(highest).exp_()
        total = probabilities.sum(dim=-1, keepdim=True)
        ctx.both = ctx.needs_input_grad[1]
        if ctx.both:
            ctx.save_for_backward(anchors, candidates, probabilities, total)
        elif ctx.needs_input_grad[0]:  # keep the finished (N, D) gradient; the queue is free to change from here on
            ctx.save_for_backward((probabilities @ candidates).div_(total))
        return (highest + total.log()).squeeze(-1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        if not ctx.both:
            return grad[..., None] * ctx.saved_tensors[0], None, None
        anchors, candidates, probabilities, total = ctx.saved_tensors
        weight = grad[..., None] / total  # (N, 1), applied to (N, D) factors rather than to the (N, M) matrix
        grad_anchors = (probabilities @ candidates) * weight if ctx.needs_input_grad[0] else None
        return grad_anchors, probabilities.mT @ (anchors * weight), None
