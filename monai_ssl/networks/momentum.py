# SPDX-License-Identifier: Apache-2.0
"""The teacher of MoCo, C2L, BYOL and DINO: a copy of a network that follows it by an exponential moving average."""

from __future__ import annotations

import math
from copy import deepcopy

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["MomentumCopy", "cosine_momentum"]


def cosine_momentum(start: float, end: float, progress: float) -> float:
    r"""Momentum of a teacher that goes from ``start`` to ``end`` along half a cosine.

    .. math:: m = m_1 - (m_1 - m_0) (\cos(\pi p) + 1) / 2

    With ``end=1`` this is BYOL's schedule (arXiv 2006.07733, section 3.3), which MoCo v3 and DINO share.

    Args:
        start: momentum at the start, in [0, 1].
        end: momentum at the end, in [0, 1]; equal to ``start`` it is constant.
        progress: share of the training's steps that are done, in [0, 1].

    Example:
        >>> [round(cosine_momentum(0.99, 1.0, p), 4) for p in (0, 0.5, 1)]
        [0.99, 0.995, 1.0]
    """
    rest = (1 + math.cos(math.pi * progress)) / 2  # 1 at the start, 0 at the end
    return end - (end - start) * rest


class MomentumCopy(nn.Module):
    r"""A network whose parameters follow a source network's (MoCo, arXiv 1911.05722, equation 2).

    .. math:: \theta_k \leftarrow m \theta_k + (1 - m) \theta_q

    It starts as an exact copy, gets no gradient, and runs without recording one. Only parameters are averaged: the
    running statistics of BatchNorm stay the copy's own, made from the batches it sees. In training mode the copy is in
    evaluation mode (no dropout, no stochastic depth) except for BatchNorm, which uses the statistics of the batch, as
    in the released code of C2L.

    Args:
        source: the network to copy.

    Attributes:
        module: the copy.
    """

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.module = deepcopy(source).requires_grad_(False)
        self.train(source.training)

    @torch.no_grad()
    def forward(self, *args: torch.Tensor) -> torch.Tensor:
        """Return the copy's output, without gradient."""
        return self.module(*args)

    @torch.no_grad()
    def update(self, source: nn.Module, momentum: float) -> None:
        """Move each parameter towards the source's.

        Args:
            source: the network that was copied.
            momentum: m in [0, 1]; 0 copies the source's parameters exactly, 1 changes nothing.

        Raises:
            ValueError: ``momentum`` is outside [0, 1], or the two networks' parameters differ in name or shape.
        """
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be in [0, 1], got {momentum}")
        ours, theirs = dict(self.module.named_parameters()), dict(source.named_parameters())
        differing = ours.keys() ^ theirs.keys() or {key for key in ours if ours[key].shape != theirs[key].shape}
        if differing:
            raise ValueError(f"the source is not the network that was copied: {min(differing)} differs")
        if ours:
            torch._foreach_lerp_(list(ours.values()), [theirs[key] for key in ours], 1 - momentum)

    def train(self, mode: bool = True) -> MomentumCopy:
        """Set the mode; see the class for what training mode means here."""
        super().train(mode)
        self.module.eval()
        for layer in self.module.modules():
            if isinstance(layer, _BatchNorm):
                layer.train(mode)
        return self
