# SPDX-License-Identifier: Apache-2.0
"""Views of several sizes through one network, in as few passes as there are sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["forward_by_size"]


def forward_by_size(net: Callable[[Tensor], Tensor], views: Sequence[Tensor]) -> list[Tensor]:
    """Pass views through a network, those of equal shape together (SwAV, DINO: multi-crop).

    Views of one shape are one batch, also for BatchNorm: neither view of a pair carries statistics of its own, by which
    it could be told.

    Args:
        net: takes (N, C, *spatial) and returns one tensor with N as first axis.
        views: (B, C, *spatial) each, of any shapes.

    Returns:
        The output (B, ...) of each view, in the views' order.

    Raises:
        ValueError: there are no views.

    Example:
        >>> large, small = torch.rand(4, 1, 8, 8), torch.rand(4, 1, 4, 4)
        >>> pooled = forward_by_size(lambda x: x.mean((2, 3)), [large, small, large])
        >>> [tuple(y.shape) for y in pooled]
        [(4, 1), (4, 1), (4, 1)]
    """
    if not views:
        raise ValueError("there are no views to encode")
    places: dict[tuple, list[int]] = {}
    for number, view in enumerate(views):
        places.setdefault((view.dtype, *view.shape), []).append(number)
    outputs: list[Tensor] = [views[0]] * len(views)
    for numbers in places.values():
        together = views[numbers[0]] if len(numbers) == 1 else torch.cat([views[n] for n in numbers])
        for number, output in zip(numbers, net(together).chunk(len(numbers)), strict=True):
            outputs[number] = output
    return outputs
