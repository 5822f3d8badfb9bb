# SPDX-License-Identifier: Apache-2.0
"""What differs between ultrasound scans of one thing: speckle, and the gain set for each depth; and a ready policy."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from monai_ssl.transforms.band_energy import RandomBandEnergy
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
from monai_ssl.transforms.blur import RandomGaussianBlur
from monai_ssl.transforms.intensity import RandomBrightnessContrast, RandomGamma
from monai_ssl.transforms.noise import RandomGaussianNoise
from monai_ssl.transforms.presets import _sides
from monai_ssl.transforms.resample import RandomResample
from monai_ssl.transforms.standardize import IntensityStandardize
from monai_ssl.transforms.views import MultiView, ViewChain

__all__ = ["RandomDepthGain", "RandomSpeckle", "ultrasound_views"]


class RandomSpeckle(RandomGaussianNoise):
    """Multiplicative noise, ``y = x (1 + s n)``, ``n ~ N(0, 1)`` per pixel, ``s ~ U(std)`` with probability ``prob``.

    What is black, as beyond the sector, stays black. The grain of one pixel is a simplification; a blur after it widens
    it. Nothing is clipped.

    Args:
        std: least and greatest standard deviation, as a share of the pixel's value.
        prob: probability of a sample being changed.
    """

    def __init__(self, std: Sequence[float] = (0.0, 0.2), prob: float = 0.5) -> None:
        super().__init__(std, prob)

    def _apply(self, x: torch.Tensor, params: Params, interpolation: str = "bilinear") -> torch.Tensor:
        std, noise = params["std"], params["noise"]

        def change(part: torch.Tensor, rows: torch.Tensor | slice) -> torch.Tensor:
            factor = take(noise, rows).to(x.dtype) * per_sample(std[rows], x.ndim).to(x.dtype)
            return part.mul_(factor.add_(1))

        return on_selected(x, std > 0, change)


class RandomDepthGain(BatchTransform):
    """``y = x exp(s (2 d - 1))`` with depth d from 0 in the first row to 1 in the last, ``s ~ U(-strength, strength)``.

    Sound grows weaker exponentially with depth, and the scanner's time gain compensation makes up for it as the
    examiner sets it: too little (s < 0) or too much (s > 0) is left. Depth runs along the last axis but one, the rows,
    in 2D and 3D: the probe is above. Probability ``prob`` per sample, else ``y = x``; nothing is clipped.

    Args:
        strength: greatest logarithm of the gain in the first and the last row; 0.5: 1.65 times.
        prob: probability of a sample being changed.
    """

    def __init__(self, strength: float = 0.5, prob: float = 0.5) -> None:
        self.strength = check_range("strength", (0.0, strength), 0.0)[1]
        self.prob = check_prob("prob", prob)

    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        extent: torch.Tensor | None = None,
    ) -> Params:
        """Draw ``slope`` (B,), the logarithm of the gain in the last row; 0 where the sample is left alone."""
        device = drawing_device(generator, device)
        chosen = chance(shape[0], self.prob, generator, device)
        slope = uniform((shape[0],), -self.strength, self.strength, generator, device)
        return {"slope": torch.where(chosen, slope, 0.0)}

    def _apply(self, x: torch.Tensor, params: Params, interpolation: str = "bilinear") -> torch.Tensor:
        slope = params["slope"]
        depth = torch.linspace(-1, 1, x.shape[-2], device=x.device)[:, None]

        def change(part: torch.Tensor, rows: torch.Tensor | slice) -> torch.Tensor:
            return part.mul_((per_sample(slope[rows], x.ndim) * depth).exp_().to(x.dtype))

        return on_selected(x, slope != 0, change)


def ultrasound_views(
    size: int | tuple[int, ...] = 224,
    spatial_dims: int = 2,
    num_views: int = 2,
    min_scale: float = 0.4,
    rotation_deg: float = 10.0,
    flip_prob: float = 0.5,
    depth_gain: float = 0.5,
    depth_gain_prob: float = 0.5,
    speckle_std: float = 0.2,
    speckle_prob: float = 0.5,
    jitter: float = 0.3,
    jitter_prob: float = 0.8,
    gamma: tuple[float, float] = (0.7, 1.5),
    gamma_prob: float = 0.5,
    blur_sigma: tuple[float, float] = (0.1, 1.0),
    blur_prob: float = 0.5,
    band_energy_prob: float = 0.0,
    standardize: IntensityStandardize | None = None,
    max_scale: float = 1.0,
) -> MultiView:
    """Views of ultrasound images in [0, 1]: another part, gain and speckle; the probe stays above.

    Mirrored left to right at most and turned a little: shadows and enhancement lie below what casts them, and a sector
    opens downwards. A part whose strength or probability is 0 is left out of the chain. The values are ours.

    Args:
        size: side(s) of the views in pixels.
        spatial_dims: 2 or 3.
        num_views: number of views.
        min_scale: least share of the image's area in a view.
        rotation_deg: greatest angle either way, within the plane of the last two axes; beyond the image its edge is
            continued.
        flip_prob: probability of a left-right mirror.
        depth_gain: see :class:`RandomDepthGain`.
        depth_gain_prob: probability of another gain.
        speckle_std: greatest standard deviation of :class:`RandomSpeckle` (the least is 0).
        speckle_prob: probability of speckle; before the blur, which widens its grain.
        jitter: half width of the brightness and contrast factors about 1.
        jitter_prob: probability of both.
        gamma: least and greatest exponent.
        gamma_prob: probability of a gamma change.
        blur_sigma: least and greatest blur in pixels of the view.
        blur_prob: probability of a blur.
        band_energy_prob: probability of other energies of the frequency bands, see :class:`RandomBandEnergy`.
        standardize: replaces the common standardisation.
        max_scale: greatest share of the image's area in a view.
    """
    scale = (min_scale, max_scale)
    parts: list[BatchTransform] = [
        RandomResample(_sides(size, spatial_dims), scale, rotation_deg=rotation_deg, flip_prob=flip_prob, in_plane=True)
    ]
    if depth_gain and depth_gain_prob:
        parts.append(RandomDepthGain(depth_gain, depth_gain_prob))
    if speckle_std and speckle_prob:
        parts.append(RandomSpeckle((0.0, speckle_std), speckle_prob))
    if band_energy_prob:
        parts.append(RandomBandEnergy(prob=band_energy_prob))
    if gamma_prob:
        parts.append(RandomGamma(gamma, gamma_prob))
    if jitter and jitter_prob:
        parts.append(RandomBrightnessContrast(jitter, jitter, jitter_prob))
    if blur_prob:
        parts.append(RandomGaussianBlur(blur_sigma, blur_prob))
    parts.append(standardize or IntensityStandardize())
    return MultiView([ViewChain(parts)] * num_views)
