# SPDX-License-Identifier: Apache-2.0
"""Gather rows of a tensor from all processes, without gradient, for the feature queue and Shuffle-BN."""

from __future__ import annotations

import torch
from torch import distributed
from torch.nn.functional import pad

__all__ = ["gather_rows"]


@torch.no_grad()
def gather_rows(x: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """Concatenate the rows of all processes in the order of their ranks; every process gets the same.

    Processes may have different numbers of rows (a last batch). Without an initialised process group, or with one
    process, ``x`` itself comes back.

    Args:
        x: (N, ...); N may differ between processes, the rest may not.

    Returns:
        The rows (sum of N, ...) and each process's N.
    """
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return x, [x.shape[0]]
    world = distributed.get_world_size()
    count = torch.tensor([x.shape[0]], device=x.device)
    counts = [torch.empty_like(count) for _ in range(world)]
    distributed.all_gather(counts, count)
    sizes = [int(n) for n in torch.cat(counts).tolist()]
    # all_gather wants equal shapes: fill up to the largest, cut afterwards.
    rows = pad(x.detach().contiguous(), [0, 0] * (x.ndim - 1) + [0, max(sizes) - x.shape[0]])
    gathered = [torch.empty_like(rows) for _ in range(world)]
    distributed.all_gather(gathered, rows)
    return torch.cat([part[:n] for part, n in zip(gathered, sizes, strict=True)]), sizes
