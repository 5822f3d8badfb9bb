# SPDX-License-Identifier: Apache-2.0
"""Bring intensities to about zero mean and unit deviation, by fixed numbers or by each image's own."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from monai_ssl.transforms.base import BatchTransform, Params


class IntensityStandardize(BatchTransform):
    """``y = (x - mean) / std``, without chance.

    Note that "per_image" undoes any brightness or contrast change that comes before it, and does so exactly: with those
    among a view's transforms, use "fixed".

    Args:
        mode: "fixed" uses ``mean`` and ``std``; "per_image" the mean and (population) standard deviation of each
            sample's each channel, a constant image becoming 0.
        mean: for "fixed": one number, or one for each channel. Images in [0, 1] are well served by 0.5 and 0.25.
        std: for "fixed": likewise, positive.
    """

    def __init__(
        self, mode: str = "fixed", mean: float | Sequence[float] = 0.5, std: float | Sequence[float] = 0.25
    ) -> None:
        if mode not in ("fixed", "per_image"):
            raise ValueError(f'mode must be "fixed" or "per_image", not {mode!r}')
        self.mode = mode
        self.mean = float(mean) if isinstance(mean, (int, float)) else tuple(float(m) for m in mean)
        self.std = float(std) if isinstance(std, (int, float)) else tuple(float(s) for s in std)
        if min([self.std] if isinstance(self.std, float) else self.std) <= 0:
            raise ValueError(f"std must be positive, got {std}")

    def _apply(self, x: torch.Tensor, params: Params, interpolation: str = "bilinear") -> torch.Tensor:
        if self.mode == "fixed":
            return x.sub_(self._per_channel(self.mean, x)).div_(self._per_channel(self.std, x))
        axes = tuple(range(2, x.ndim))
        x = x.sub_(x.mean(dim=axes, keepdim=True))
        size = x[0, 0].numel()
        std = torch.linalg.vector_norm(x, dim=axes, keepdim=True) / size**0.5
        return x.div_(std.clamp_(min=1e-6))

    def _per_channel(self, value: float | tuple[float, ...], x: torch.Tensor) -> float | torch.Tensor:
        if isinstance(value, float):
            return value
        if len(value) != x.shape[1]:
            raise ValueError(f"{len(value)} means or deviations were given for images of {x.shape[1]} channels")
        return x.new_tensor(value).view(-1, *[1] * (x.ndim - 2))
