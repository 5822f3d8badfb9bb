# SPDX-License-Identifier: Apache-2.0
"""Masks that are unions of boxes, each sample its own, without a loop over samples or boxes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["boxes_to_mask"]


def boxes_to_mask(
    start: torch.Tensor, stop: torch.Tensor, spatial: Sequence[int], used: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the union of each sample's boxes as a mask.

    Args:
        start: (B, K, n) integers, the first voxel of each of K boxes along each of the n axes.
        stop: (B, K, n) integers, the first voxel beyond.
        spatial: image size, (H, W) or (D, H, W).
        used: (B, K) bool, which boxes count; None: all.

    Returns:
        (B, 1, \\*spatial) bool, True inside at least one box.

    Example:
        >>> start, stop = torch.tensor([[[0, 1]]]), torch.tensor([[[2, 3]]])
        >>> boxes_to_mask(start, stop, (2, 4)).int()[0, 0].tolist()
        [[0, 1, 1, 0], [0, 1, 1, 0]]
    """
    inside = []
    for axis, length in enumerate(spatial):
        at = torch.arange(length, device=start.device)
        covered = (at >= start[..., axis, None]) & (at < stop[..., axis, None])  # (B, K, length)
        inside.append(covered.float())
    if used is not None:
        inside[0] = inside[0] * used[..., None]
    first, *others = inside
    rest = others[0]
    for other in others[1:]:
        rest = (rest[..., :, None] * other[..., None, :]).flatten(2)  # (B, K, H, W) -> (B, K, H W)
    # How many boxes hold a voxel, as one matrix product: (B, L_0, K) x (B, K, rest). Sums of ones are exact.
    count = first.transpose(1, 2) @ rest
    return (count > 0.5).view(len(start), 1, *spatial)
