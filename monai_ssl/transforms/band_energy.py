# SPDX-License-Identifier: Apache-2.0
r"""Random energy of frequency bands: the differences between makers' processing of one radiograph, as an augmentation.

With L_0 the image and L_{k+1} the image L_k smoothed and sampled at every second pixel,

.. math::
    b_k = L_k - U L_{k+1} \quad (0 \le k < n - 1), \qquad
    r = L_{n-1}, \qquad
    y = \sum_{k < n - 1} g_k U^k b_k + U^{n-1} (\bar r + g_{n-1} (r - \bar r)),

where U doubles the number of pixels by linear interpolation. That is a Laplacian pyramid (Burt and Adelson, IEEE Trans.
Communications 31, 1983): it is put together again without loss.
"""

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
    uniform,
)

__all__ = ["RandomBandEnergy"]


class RandomBandEnergy(BatchTransform):
    """Scale each frequency band by its own gain, ``g = exp(U(log gain))``, with probability ``prob`` per sample.

    The bands are those of a Laplacian pyramid, from fine to coarse, each twice as coarse as the one before. Smoothing
    is by (1, 3, 3, 1) / 8 along each axis, so that a pixel of band k sums over the differences between Gaussian-like
    blurs of about 0.7 * 2**k and 0.7 * 2**(k + 1) pixels of the image (band 0: between the image and 1.2 pixels). The
    last band is what is left, the coarse structure about its mean; the mean itself stays. A band's energy, the sum of
    its squares, becomes g**2 times what it was. With all gains 1 the image comes out as it was, bit by bit. Nothing is
    clipped: values may leave [0, 1] a little. An axis that has come down to one pixel is not halved any more.

    Made after Philipsen et al., *Localized energy-based normalization of medical images: application to chest
    radiography*, IEEE TMI 34(9), 2015, who bring each band's local energy to that of a reference, so that radiographs
    of several makers look alike. Here chance sets the energies, evenly over the image, so that a network learns not to
    heed them; as an augmentation of self-supervised learning it is our reading of Ghesu et al., *Self-supervised
    learning from 100 million medical images*, arXiv 2201.01283, 2022. Number of bands and range of the gains are ours.

    Args:
        bands: number of bands, the coarse rest among them; 2 or more. 6 at 224 pixels: the rest is what a blur of 23
            pixels leaves.
        gain: least and greatest gain, positive. (0.6, 1.67) changes an energy by up to 2.8 times either way.
        prob: probability of a sample being changed.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> sharper = RandomBandEnergy(bands=2, gain=(2, 2), prob=1)
        >>> flat = torch.full((1, 1, 8, 8), 0.25)
        >>> torch.equal(sharper(flat), flat)
        True
    """

    def __init__(self, bands: int = 6, gain: Sequence[float] = (0.6, 1.67), prob: float = 0.5) -> None:
        if bands < 2:
            raise ValueError(f"bands must be 2 or more, got {bands}")
        self.bands = int(bands)
        self.gain = check_range("gain", gain, 1e-3)
        self.prob = check_prob("prob", prob)

    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        extent: torch.Tensor | None = None,
    ) -> Params:
        """Draw ``gain`` (B, bands), from fine to coarse; all 1 where the sample is left alone."""
        device = drawing_device(generator, device)
        chosen = chance(shape[0], self.prob, generator, device)
        low, high = torch.tensor(self.gain).log().tolist()
        gain = uniform((shape[0], self.bands), low, high, generator, device).exp_()
        return {"gain": torch.where(chosen[:, None], gain, 1.0)}

    def _apply(self, x: torch.Tensor, params: Params, interpolation: str = "bilinear") -> torch.Tensor:
        gain = params["gain"]

        def change(part: torch.Tensor, rows: torch.Tensor | slice) -> torch.Tensor:
            return _scale_bands(part, gain[rows].to(part.dtype))

        return on_selected(x, (gain != 1).any(1), change)


def _scale_bands(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """Scale the bands of (N, C, *spatial) by ``gain`` (N, bands), without ever holding a band.

    With y_k what has been put together from the coarsest band up to band k, ``y_k = g_k (L_k - U L_{k+1}) + U y_{k+1}``
    is ``g_k L_k + U (y_{k+1} - g_k L_{k+1})``: one interpolation a level, and of exact zeros where all gains are 1.
    """
    first = per_sample(gain[:, 0], x.ndim)
    if gain.shape[1] == 1:
        mean = x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)
        return x + (first - 1) * (x - mean)
    axes = [axis for axis in range(2, x.ndim) if x.shape[axis] > 1]
    coarse = x
    for axis in axes:
        coarse = _halve(coarse, axis)
    change = _scale_bands(coarse, gain[:, 1:]).sub_(first * coarse)
    for axis in reversed(axes):
        change = _double(change, axis, x.shape[axis])
    return change.addcmul_(first, x)


def _halve(x: torch.Tensor, axis: int) -> torch.Tensor:
    """Smooth by (1, 3, 3, 1) / 8 and keep every second value; beyond its edge an image goes on with its last pixel.

    Value i lies between pixels 2 i and 2 i + 1, so it is (3 pairs) / 4 + (the pair around them) / 4.
    """
    n = x.shape[axis]
    if n % 2:
        x = torch.cat([x, x.narrow(axis, n - 1, 1)], axis)
    even, odd = x.unflatten(axis, (-1, 2)).unbind(axis + 1)
    half = even.shape[axis]
    out = torch.add(even, odd).mul_(0.375)
    out.narrow(axis, 1, half - 1).add_(odd.narrow(axis, 0, half - 1), alpha=0.125)
    out.narrow(axis, 0, half - 1).add_(even.narrow(axis, 1, half - 1), alpha=0.125)
    out.narrow(axis, 0, 1).add_(even.narrow(axis, 0, 1), alpha=0.125)
    out.narrow(axis, half - 1, 1).add_(odd.narrow(axis, half - 1, 1), alpha=0.125)
    return out


def _double(x: torch.Tensor, axis: int, length: int) -> torch.Tensor:
    """Interpolate linearly between the values that ``_halve`` made, at ``length`` pixels (twice as many, or 1 less)."""
    half = x.shape[axis]
    out = x.mul(0.75).unsqueeze(axis + 1).repeat_interleave(2, axis + 1)  # (..., half, 2, ...)
    even, odd = out.unbind(axis + 1)
    even.narrow(axis, 1, half - 1).add_(x.narrow(axis, 0, half - 1), alpha=0.25)
    odd.narrow(axis, 0, half - 1).add_(x.narrow(axis, 1, half - 1), alpha=0.25)
    even.narrow(axis, 0, 1).add_(x.narrow(axis, 0, 1), alpha=0.25)
    odd.narrow(axis, half - 1, 1).add_(x.narrow(axis, half - 1, 1), alpha=0.25)
    return out.flatten(axis, axis + 1).narrow(axis, 0, length)
