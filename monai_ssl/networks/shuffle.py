# SPDX-License-Identifier: Apache-2.0
"""Shuffle-BN: hide from the teacher which images share a BatchNorm with which (MoCo, arXiv 1911.05722, section 3.3)."""

from __future__ import annotations

import torch
from torch import distributed, nn

from .gather import gather_rows

__all__ = ["BatchShuffle", "shuffle_batch_norm"]


class BatchShuffle:
    """One random permutation of the images of all processes, and its inverse.

    Keep the object to shuffle several batches alike (C2L passes the images and their mixtures through one permutation).
    With one process the permutation is drawn and undone, but BatchNorm sees the same set of images: the output equals
    the unshuffled one. SyncBatchNorm is the alternative that needs no shuffling.

    Args:
        batch_size: images on this process; it may differ between processes.
        device: where the batches are.
        generator: source of the permutation, on ``device``; process 0's draw is the one used everywhere.
    """

    def __init__(
        self, batch_size: int, device: torch.device | str | None = None, generator: torch.Generator | None = None
    ) -> None:
        counts = torch.full((batch_size,), batch_size, device=device)
        _, sizes = gather_rows(counts)
        self._permutation = torch.randperm(sum(sizes), device=device, generator=generator)
        rank = 0
        if len(sizes) > 1:
            rank = distributed.get_rank()
            distributed.broadcast(self._permutation, 0)
        self._inverse = torch.argsort(self._permutation)
        self._own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))

    def shuffle(self, x: torch.Tensor) -> torch.Tensor:
        """Exchange rows: (B, ...) of this process in, (B, ...) drawn from all processes out. No gradient across."""
        return gather_rows(x)[0][self._permutation[self._own]]

    def unshuffle(self, x: torch.Tensor) -> torch.Tensor:
        """Bring results (B, ...) of shuffled rows back to the rows they came from."""
        return gather_rows(x)[0][self._inverse[self._own]]


@torch.no_grad()
def shuffle_batch_norm(
    module: nn.Module,
    x: torch.Tensor,
    shuffle: BatchShuffle | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Run a teacher on a batch with Shuffle-BN, without gradient.

    Args:
        module: the teacher.
        x: (B, C, *spatial).
        shuffle: the permutation to use; default: a new one.
        generator: source of a new permutation, on the device of ``x``.

    Returns:
        The teacher's output (B, ...), in the order of ``x``.
    """
    shuffle = shuffle or BatchShuffle(x.shape[0], x.device, generator)
    return shuffle.unshuffle(module(shuffle.shuffle(x)))
