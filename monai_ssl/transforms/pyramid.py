# SPDX-License-Identifier: Apache-2.0
"""Average-pool pyramid of a batch: what makes shrinking free of aliasing, computed once for all views."""

from __future__ import annotations

import torch

_CHUNK_ELEMENTS = 1 << 20  # of the finer level: temporaries stay within the processor's cache


class AveragePyramid:
    """Versions of a batch that are halved along each axis as often as asked for, made on demand and kept.

    Pixel ``p`` of level ``l`` along an axis is the mean of pixels ``p * 2**l ... (p + 1) * 2**l - 1``; pixels at the
    far end that do not fill a whole pooled pixel are left out.

    Args:
        x: (B, C, *spatial), floating point.

    Example:
        >>> AveragePyramid(torch.rand(2, 1, 8, 9))[1, 2].shape
        torch.Size([2, 1, 4, 2])
    """

    def __init__(self, x: torch.Tensor) -> None:
        self._levels: dict[tuple[int, ...], torch.Tensor] = {(0,) * (x.ndim - 2): x}

    def __getitem__(self, level: tuple[int, ...]) -> torch.Tensor:
        """The batch pooled ``level[i]`` times along spatial axis ``i``."""
        if level not in self._levels:
            finer = self[tuple(max(n - 1, 0) for n in level)]
            self._levels[level] = _halve(finer, [axis + 2 for axis, n in enumerate(level) if n > 0])
        return self._levels[level]


def _halve(x: torch.Tensor, axes: list[int]) -> torch.Tensor:
    """Mean of neighbouring pairs along each of ``axes``."""
    shape = [n // 2 if axis in axes else n for axis, n in enumerate(x.shape)]
    pooled = x.new_empty(shape)
    # Strided additions are several times faster on a CPU than avg_pool; whole batches would spill out of the cache.
    chunk = max(1, _CHUNK_ELEMENTS * len(x) // max(x.numel(), 1)) if x.device.type == "cpu" else len(x)
    for part, out in zip(x.split(chunk), pooled.split(chunk), strict=True):
        for axis in axes[:-1]:
            part = torch.add(*_pairs(part, axis))
        torch.add(*_pairs(part, axes[-1]), out=out)
        out.mul_(0.5 ** len(axes))
    return pooled


def _pairs(x: torch.Tensor, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Even and odd pixels along ``axis``; an unpaired last pixel is left out."""
    paired = x.narrow(axis, 0, x.shape[axis] // 2 * 2).unflatten(axis, (-1, 2))  # (..., n // 2, 2, ...)
    return paired.select(axis + 1, 0), paired.select(axis + 1, 1)
