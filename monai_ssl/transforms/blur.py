# SPDX-License-Identifier: Apache-2.0
"""Random Gaussian blur, each sample with its own width."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F

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

_WHOLE_ELEMENTS = 1 << 19  # more is blurred in pieces on a CPU
_PIECE_ELEMENTS = 1 << 17
_TRUNCATE = 3.0  # standard deviations; 0.3 % of the weight lies beyond


class RandomGaussianBlur(BatchTransform):
    """Blur by a Gaussian of ``sigma ~ U(sigma)`` pixels of the view with probability ``prob``, else nothing.

    The kernel is sampled at whole pixels up to 3 times the greatest sigma, normalised to 1, and applied along one axis
    after the other; beyond its edge an image goes on with its outermost pixel.

    Args:
        sigma: least and greatest standard deviation in pixels (SimCLR, MoCo v2: 0.1 to 2 at 224 pixels).
        prob: probability of a sample being blurred.
        per_axis: draw a sigma for each axis (nnU-Net, MONAI) and not one for all.
    """

    def __init__(self, sigma: Sequence[float] = (0.1, 2.0), prob: float = 0.5, per_axis: bool = False) -> None:
        self.sigma = check_range("sigma", sigma, 0.0)
        self.prob = check_prob("prob", prob)
        self.per_axis = bool(per_axis)

    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        extent: torch.Tensor | None = None,
    ) -> Params:
        """Draw ``sigma`` in pixels, (B,) or with ``per_axis`` (B, n); 0 where the sample is left alone."""
        device = drawing_device(generator, device)
        chosen = chance(shape[0], self.prob, generator, device)
        size = (shape[0], len(shape) - 2) if self.per_axis else (shape[0],)
        return {"sigma": torch.where(per_sample(chosen, len(size)), uniform(size, *self.sigma, generator, device), 0.0)}

    def _apply(self, x: torch.Tensor, params: Params, interpolation: str = "bilinear") -> torch.Tensor:
        radius = math.ceil(_TRUNCATE * self.sigma[1])
        sigma = params["sigma"].view(len(x), -1).expand(-1, x.ndim - 2)  # (B, n)
        if radius == 0:
            return x
        at = torch.arange(-radius, radius + 1, dtype=torch.float32, device=x.device)
        # The least sigma that is not a delta for float32, so that sigma = 0 is no division by zero.
        weight = torch.exp(-0.5 * (at / sigma.clamp(min=1e-3)[..., None]) ** 2)
        kernels = (weight / weight.sum(2, keepdim=True)).to(x.dtype)  # (B, n, taps)
        return on_selected(x, (sigma > 0).any(1), lambda part, rows: _blur(part, kernels[rows]))


def _blur(x: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    """Convolve sample i of (N, C, *spatial) with the symmetric ``kernels[i, j]`` along its spatial axis j.

    Volumes on a CPU in pieces that stay within the processor's cache: first along all axes but the first, in pieces
    along the first; then along the first, in pieces along the second.
    """
    if x.device.type != "cpu" or x.numel() <= _WHOLE_ELEMENTS:
        for axis in range(2, x.ndim):
            x = _blur_along(x, kernels[:, axis - 2], axis)
        return x
    pieces = math.ceil(x.numel() / _PIECE_ELEMENTS)
    out = torch.empty_like(x)
    split = math.ceil(x.shape[2] / pieces)
    for piece, into in zip(x.split(split, 2), out.split(split, 2), strict=True):
        for axis in range(3, x.ndim):
            piece = _blur_along(piece, kernels[:, axis - 2], axis)
        into.copy_(piece)
    for piece in out.split(math.ceil(x.shape[3] / pieces), 3):
        piece.copy_(_blur_along(piece, kernels[:, 0], 2))
    return out


def _blur_along(x: torch.Tensor, kernels: torch.Tensor, axis: int) -> torch.Tensor:
    """Convolve sample i with ``kernels[i]`` along one axis.

    Sums of shifted images: a grouped convolution, one group for each sample, is up to 20 times slower on a CPU,
    according to the number of samples, and far worse in 3D.
    """
    radius, n, length = kernels.shape[1] // 2, x.ndim - 2, x.shape[axis]
    weights = kernels.T.reshape(-1, len(x), *[1] * (n + 1))  # (taps, N, 1, ..., 1)
    padding = [radius if i // 2 == x.ndim - 1 - axis else 0 for i in range(2 * n)]  # innermost axis first
    padded = F.pad(x, padding, mode="replicate")
    x = padded.narrow(axis, radius, length) * weights[radius]
    pair = torch.empty_like(x)
    for i in range(1, radius + 1):
        torch.add(padded.narrow(axis, radius - i, length), padded.narrow(axis, radius + i, length), out=pair)
        x.addcmul_(pair, weights[radius + i])
    return x
