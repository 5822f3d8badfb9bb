# SPDX-License-Identifier: Apache-2.0
"""Random Gaussian noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from monai_ssl.transforms.base import (
    BatchTransform,
    Params,
    chance,
    check_prob,
    check_range,
    drawing_device,
    per_sample,
    uniform,
)


class RandomGaussianNoise(BatchTransform):
    """``y = x + s n`` with ``n ~ N(0, 1)`` per pixel, ``s ~ U(std)`` with probability ``prob`` per sample, else s = 0.

    Args:
        std: least and greatest standard deviation, in the image's unit.
        prob: probability of a sample being changed.
    """

    def __init__(self, std: Sequence[float] = (0.0, 0.05), prob: float = 0.5) -> None:
        self.std = check_range("std", std, 0.0)
        self.prob = check_prob("prob", prob)

    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        extent: torch.Tensor | None = None,
    ) -> Params:
        """Draw ``std`` (B,) and ``noise`` of the batch's shape."""
        device = drawing_device(generator, device)
        chosen = chance(shape[0], self.prob, generator, device)
        return {
            "std": torch.where(chosen, uniform((shape[0],), *self.std, generator, device), 0.0),
            "noise": torch.randn(*shape, generator=generator, device=device),
        }

    def _apply(self, x: torch.Tensor, params: Params, interpolation: str = "bilinear") -> torch.Tensor:
        return x.addcmul_(params["noise"].to(x.dtype), per_sample(params["std"], x.ndim).to(x.dtype))
