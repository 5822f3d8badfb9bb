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
    on_selected,
    per_sample,
    take,
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
        """Draw ``std`` (B,) and ``noise`` of the batch's shape; on a CPU only where it is added, else 0."""
        device = drawing_device(generator, device)
        chosen = chance(shape[0], self.prob, generator, device)
        std = torch.where(chosen, uniform((shape[0],), *self.std, generator, device), 0.0)
        if device.type != "cpu":
            return {"std": std, "noise": torch.randn(*shape, generator=generator, device=device)}
        noise = torch.zeros(*shape)  # costs nothing before it is written to
        for i in chosen.nonzero().squeeze(1).tolist():
            torch.randn(shape[1:], generator=generator, out=noise[i])
        return {"std": std, "noise": noise}

    def _apply(self, x: torch.Tensor, params: Params, interpolation: str = "bilinear") -> torch.Tensor:
        std, noise = params["std"], params["noise"]

        def change(part: torch.Tensor, rows: torch.Tensor | slice) -> torch.Tensor:
            return part.addcmul_(take(noise, rows).to(x.dtype), per_sample(std[rows], x.ndim).to(x.dtype))

        return on_selected(x, std > 0, change)
