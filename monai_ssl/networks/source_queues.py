# SPDX-License-Identifier: Apache-2.0
"""One queue of features for each source (modality) of the images, filled from mixed batches.

SwAV (Caron et al., arXiv 2006.09882, section 4.1 and appendix A.4): features of earlier batches help a small batch to
use all prototypes alike.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .gather import gather_rows

__all__ = ["SourceQueues"]


class SourceQueues(nn.Module):
    """A ring of feature vectors for each source; new ones replace the oldest of the same source.

    Everything is a persistent buffer. In a distributed run the new rows of all processes are gathered in rank order and
    every process enters them all: the queues stay equal, whatever sources a process holds. Nothing here reads a value
    back from the device.

    Args:
        size: Q, the number of entries of each source.
        dim: D, their length.
        num_sources: S.

    Attributes:
        features: (S, Q, D) float32; zeros until they are filled.
        total_enqueued: (S,) int64, number of vectors enqueued since the start.

    Raises:
        ValueError: a number is below 1.

    Example:
        >>> queues = SourceQueues(size=4, dim=2, num_sources=2)
        >>> queues.enqueue(torch.ones(5, 2), torch.tensor([0, 1, 1, 1, 1]))
        >>> queues.full.tolist()
        [False, True]
    """

    features: Tensor
    total_enqueued: Tensor

    def __init__(self, size: int, dim: int, num_sources: int = 1) -> None:
        super().__init__()
        if min(size, dim, num_sources) < 1:
            raise ValueError(
                f"the queues need a size, a dim and a num_sources of at least 1, got {size}, {dim} and {num_sources}"
            )
        self.register_buffer("features", torch.zeros(num_sources, size, dim))
        self.register_buffer("total_enqueued", torch.zeros(num_sources, dtype=torch.int64))

    @property
    def full(self) -> Tensor:
        """(S,) booleans: every entry of the source's queue has been written."""
        return self.total_enqueued >= self.features.shape[1]

    @torch.no_grad()
    def enqueue(self, x: Tensor, source: Tensor) -> None:
        """Write vectors over the oldest entries of their sources, in order; any number of them.

        Args:
            x: (N, D), stored as they are.
            source: (N,) int64 numbers of their sources, from 0 to S - 1.

        Raises:
            ValueError: ``x`` or ``source`` has another shape.
        """
        sources, size, dim = self.features.shape
        if x.ndim != 2 or x.shape[1] != dim or source.shape != x.shape[:1]:
            raise ValueError(
                f"the queues take features (N, {dim}) and their sources (N,), got {tuple(x.shape)} and "
                f"{tuple(source.shape)}"
            )
        # One gather for both; float32 holds the sources' small numbers exactly.
        rows = gather_rows(torch.cat([x.float(), source[:, None].float()], 1))[0]
        for part in rows.split(size):  # so that no slot is written twice at once
            source = part[:, -1].long()
            member = source[:, None] == torch.arange(sources, device=source.device)  # (n, S)
            earlier = member.cumsum(0).gather(1, source[:, None]).squeeze(1) - 1  # of its source, before it in the part
            slot = (self.total_enqueued[source] + earlier) % size
            self.features.view(sources * size, dim).index_copy_(0, source * size + slot, part[:, :-1])
            self.total_enqueued.add_(member.sum(0))
