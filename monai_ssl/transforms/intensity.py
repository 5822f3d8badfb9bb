# SPDX-License-Identifier: Apache-2.0
"""Random brightness, contrast and gamma, in the image's own range: nothing is rounded and nothing clipped above."""

from __future__ import annotations

import math
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
    uniform,
)


class RandomBrightnessContrast(BatchTransform):
    """Colour jitter as far as it acts on grey: ``y = b (m + c (x - m))``, m the mean of the image's own channel.

    ``b ~ U(max(0, 1 - brightness), 1 + brightness)`` and ``c ~ U(max(0, 1 - contrast), 1 + contrast)`` per sample, as
    in torchvision's ColorJitter; with probability 1 - prob, b = c = 1. Values are not clipped to [0, 1], and therefore
    brightness first or contrast first is the same thing: torchvision's random order has no counterpart.

    Args:
        brightness: half width of the factor's range; 0 is off.
        contrast: half width of the factor's range; 0 is off.
        prob: probability of a sample being changed.
    """

    def __init__(self, brightness: float = 0.4, contrast: float = 0.4, prob: float = 1.0) -> None:
        if brightness < 0 or contrast < 0:
            raise ValueError(f"brightness ({brightness}) and contrast ({contrast}) must not be negative")
        self.brightness = float(brightness)
        self.contrast = float(contrast)
        self.prob = check_prob("prob", prob)

    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        extent: torch.Tensor | None = None,
    ) -> Params:
        """Draw the factors ``brightness`` and ``contrast``, (B,) each."""
        device = drawing_device(generator, device)
        chosen = chance(shape[0], self.prob, generator, device)
        params = {}
        for name, width in (("brightness", self.brightness), ("contrast", self.contrast)):
            factor = uniform((shape[0],), max(0.0, 1 - width), 1 + width, generator, device)
            params[name] = torch.where(chosen, factor, 1.0)
        return params

    def _apply(self, x: torch.Tensor, params: Params, interpolation: str = "bilinear") -> torch.Tensor:
        b, c = (per_sample(params[name], x.ndim).to(x.dtype) for name in ("brightness", "contrast"))
        # b (m + c (x - m)) = (b c) x + b (1 - c) m
        mean = x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)
        return x.mul_(b * c).add_(b * (1 - c) * mean)


class RandomGamma(BatchTransform):
    """``y = max(x, 0) ** g`` with ``g = exp(U(log gamma))`` and probability ``prob`` per sample, else ``y = x``.

    Meant for values in [0, 1], which stay there: g < 1 brightens, g > 1 darkens.

    Args:
        gamma: least and greatest exponent, positive.
        prob: probability of a sample being changed.
    """

    def __init__(self, gamma: Sequence[float] = (0.7, 1.5), prob: float = 0.5) -> None:
        self.gamma = check_range("gamma", gamma, 1e-3)
        self.prob = check_prob("prob", prob)

    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        extent: torch.Tensor | None = None,
    ) -> Params:
        """Draw ``gamma`` (B,); 1 where the sample is left alone."""
        device = drawing_device(generator, device)
        chosen = chance(shape[0], self.prob, generator, device)
        low, high = (math.log(g) for g in self.gamma)
        return {"gamma": torch.where(chosen, uniform((shape[0],), low, high, generator, device).exp(), 1.0)}

    def _apply(self, x: torch.Tensor, params: Params, interpolation: str = "bilinear") -> torch.Tensor:
        gamma = params["gamma"]

        def change(part: torch.Tensor, rows: torch.Tensor | slice) -> torch.Tensor:
            return part.clamp_(min=0).pow_(per_sample(gamma[rows], x.ndim).to(x.dtype))

        return on_selected(x, gamma != 1, change)
