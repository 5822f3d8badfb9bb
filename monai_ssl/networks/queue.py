# SPDX-License-Identifier: Apache-2.0
"""The queue of features that serve as negatives (MoCo, arXiv 1911.05722, section 3.2)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import normalize

from .gather import gather_rows

__all__ = ["FeatureQueue"]


class FeatureQueue(nn.Module):
    """A ring of K feature vectors; new ones replace the oldest.

    Everything is a persistent buffer, so that a checkpoint holds the queue and training resumes with the same
    negatives. In a distributed run, the new rows of all processes are gathered in rank order and every process enters
    them all: the queues stay equal.

    Beside each entry stands the group of the image it was made from, its patient, say, so that a loss can leave out
    entries of the query's own group (see :meth:`of_group`). The state of a version that knew no groups loads with all
    of them unknown.

    ``features`` is the ring itself, not a copy (a copy of 65,536 x 128 values takes milliseconds a step). It is changed
    in place: enqueue after ``backward()``, or hand the loss ``queue.features.clone()`` where keys must enter before it
    (C2L's released code enqueues between its losses). To forget it is an error in ``backward()``, no wrong gradient.

    Args:
        size: K, the number of entries.
        dim: D, their length.
        init: the entries before the first ones are enqueued. ``"uniform"``: each coordinate from U(-b, b) with
            b = 1 / sqrt(D / 3), so that the norm is about 1 (released code of CMC, MoCo v1 and C2L); ``"unit_normal"``:
            normal deviates scaled to norm 1 (released code of MoCo v2).
        generator: source of the initial entries; default: torch's own.

    Attributes:
        features: (K, D) float32.
        groups: (K,) int64, the group of each entry; -1 where it is not known.
        position: where the next entry goes, 0 to K - 1 (int64 scalar).
        total_enqueued: number of vectors enqueued since the start (int64 scalar).

    Raises:
        ValueError: ``size`` or ``dim`` is below 1, or ``init`` is unknown.

    Example:
        >>> queue = FeatureQueue(size=4, dim=2)
        >>> queue.enqueue(torch.tensor([[1.0, 0.0]]).expand(6, 2))
        >>> queue.features[:, 0].tolist(), int(queue.position), int(queue.total_enqueued)
        ([1.0, 1.0, 1.0, 1.0], 2, 6)
    """

    features: torch.Tensor
    groups: torch.Tensor
    position: torch.Tensor
    total_enqueued: torch.Tensor

    def __init__(self, size: int, dim: int, init: str = "uniform", generator: torch.Generator | None = None) -> None:
        super().__init__()
        if size < 1 or dim < 1:
            raise ValueError(f"the queue needs a size and a dim of at least 1, got {size} and {dim}")
        if init == "uniform":
            bound = (dim / 3) ** -0.5
            features = torch.empty(size, dim).uniform_(-bound, bound, generator=generator)
        elif init == "unit_normal":
            features = normalize(torch.randn(size, dim, generator=generator))
        else:
            raise ValueError(f"init must be 'uniform' or 'unit_normal', got {init!r}")
        self.register_buffer("features", features)
        self.register_buffer("groups", torch.full((size,), -1, dtype=torch.int64))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))
        self.register_buffer("total_enqueued", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, x: torch.Tensor, groups: torch.Tensor | None = None) -> None:
        """Write vectors over the oldest entries, in order, wrapping round the end; any number of them.

        Args:
            x: (N, D), stored as they are (normalise before). The queue never carries a gradient.
            groups: (N,) integers, the group of each; negative where it is not known. None: of all of them.

        Raises:
            ValueError: ``x`` or ``groups`` has another shape.
        """
        size, dim = self.features.shape
        if x.ndim != 2 or x.shape[1] != dim:
            raise ValueError(f"the queue takes features of shape (N, {dim}), got {tuple(x.shape)}")
        if groups is None:
            groups = self.groups.new_full(x.shape[:1], -1)
        elif groups.shape != x.shape[:1]:
            raise ValueError(f"the queue takes one group for each of {len(x)} features, got {tuple(groups.shape)}")
        x, groups = gather_rows(x)[0].to(self.features.dtype), gather_rows(groups)[0].to(torch.int64).clamp(min=-1)
        first = max(0, x.shape[0] - size)  # of more than K rows only the last K survive
        slots = torch.arange(first, x.shape[0], device=self.position.device).add_(self.position).remainder_(size)
        self.features.index_copy_(0, slots, x[first:])
        self.groups.index_copy_(0, slots, groups[first:])
        self.position.add_(x.shape[0]).remainder_(size)
        self.total_enqueued.add_(x.shape[0])

    def of_group(self, groups: torch.Tensor) -> torch.Tensor:
        """Return (B, K) booleans: True where an entry's group is that of ``groups`` (B,); what is unknown equals none.

        It is the ``negative_mask`` of :func:`monai_ssl.losses.info_nce`.
        """
        return (groups[:, None] == self.groups) & (groups >= 0)[:, None]

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        if prefix + "features" in state_dict and prefix + "groups" not in state_dict:
            unknown = self.groups.new_full(state_dict[prefix + "features"].shape[:1], -1)
            state_dict[prefix + "groups"] = unknown
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
