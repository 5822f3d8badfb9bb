# SPDX-License-Identifier: Apache-2.0
"""From an encoder's last feature map straight back to an image: the reconstruction head of SwinUNETR's pretraining.

Tang et al., *Self-Supervised Pre-Training of Swin Transformers for 3D Medical Image Analysis*, CVPR 2022, arXiv
2111.14791, section 3.2 (one transposed convolution), and the three forms of the released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from monai.networks.layers import Conv, Norm
from torch import nn

from .encoders import ImageEncoder

__all__ = ["UpsamplingHead", "measure_maps", "measure_stride"]


class UpsamplingHead(nn.Module):
    """Bring a map (B, F, *spatial / stride) to an image (B, out_channels, *spatial).

    Args:
        in_channels: F.
        out_channels: channels of the image.
        stride: by how much the map is smaller, along each of 2 or 3 axes. Steps are its prime factors, one factor an
            axis and step: five doublings for 32.
        form: ``"vae"``: in each step a 3-wide convolution to half the channels (the last step keeps them), instance
            normalisation, leaky ReLU and linear interpolation; then a 1-wide convolution. ``"deconv"``: one transposed
            convolution a step, halving the channels. ``"large_kernel_deconv"``: a single transposed convolution.

    Raises:
        ValueError: unknown ``form``.

    Example:
        >>> UpsamplingHead(32, 1, (4, 8, 8))(torch.rand(2, 32, 2, 2, 2)).shape
        torch.Size([2, 1, 8, 16, 16])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: Sequence[int],
        form: Literal["vae", "deconv", "large_kernel_deconv"] = "vae",
    ) -> None:
        super().__init__()
        self.form, self.stride = form, tuple(stride)
        dims = len(stride)
        steps = [tuple(stride)] if form == "large_kernel_deconv" else _steps(stride)
        layers: list[nn.Module] = []
        width = in_channels
        if form == "vae":
            conv = Conv[Conv.CONV, dims]
            for number, step in enumerate(steps, 1):
                narrow = width if number == len(steps) > 1 else max(1, width // 2)
                layers += [
                    conv(width, narrow, 3, padding=1),
                    Norm[Norm.INSTANCE, dims](narrow),
                    nn.LeakyReLU(inplace=True),
                    nn.Upsample(scale_factor=step, mode="bilinear" if dims == 2 else "trilinear"),
                ]
                width = narrow
            layers.append(conv(width, out_channels, 1))
        elif form in ("deconv", "large_kernel_deconv"):
            for number, step in enumerate(steps, 1):
                narrow = out_channels if number == len(steps) else max(1, width // 2)
                layers.append(Conv[Conv.CONVTRANS, dims](width, narrow, kernel_size=step, stride=step))
                width = narrow
        else:
            raise ValueError(f"form must be 'vae', 'deconv' or 'large_kernel_deconv', got {form!r}")
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return images (B, out_channels, *spatial) of maps (B, F, *spatial / stride).

        Raises:
            ValueError: the form ``"vae"``, which normalises over places, gets maps of a single one.
        """
        if self.form == "vae" and x.shape[2:].numel() == 1:
            raise ValueError(
                f"images of {self.stride} voxels leave a single place in the last map, which form 'vae' cannot "
                "normalise over: make them twice as long along one axis at least, or use another form"
            )
        return self.layers(x)


def measure_stride(encoder: ImageEncoder) -> tuple[int, ...]:
    """Return by how much an encoder's last feature map is smaller than the image, along each axis.

    Networks that do not say it are asked as :func:`measure_maps` does it.
    """
    for known in ("size_divisor", "patch_size"):
        if hasattr(encoder, known):
            return tuple(getattr(encoder, known))
    return measure_maps(encoder)[-1][1]


@torch.no_grad()
def measure_maps(encoder: ImageEncoder) -> list[tuple[int, tuple[int, ...]]]:
    """Return for each of an encoder's feature maps, finest first, its channels and by how much it is smaller.

    The encoder is asked with one black image, of the size it was built for or of 64 voxels a side; its state is left
    alone.

    Args:
        encoder: to ask.

    Returns:
        For each level of the pyramid the channels, and the stride along each axis.
    """
    size = encoder.network_args.get("img_size", 64)
    sides = [size] * encoder.spatial_dims if isinstance(size, int) else size
    modes = {module: module.training for module in encoder.modules()}
    image = torch.zeros(1, encoder.in_channels, *sides).to(next(encoder.parameters()))
    shapes = [x.shape for x in encoder.eval().feature_maps(image)]
    for module, mode in modes.items():
        module.training = mode
    return [(s[1], tuple(side // cells for side, cells in zip(sides, s[2:], strict=True))) for s in shapes]


def _steps(stride: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the factors of each step; an axis that needs fewer steps has them last."""
    factors = [_prime_factors(number) for number in stride]
    count = max(1, *map(len, factors))
    return list(zip(*[[1] * (count - len(mine)) + mine for mine in factors], strict=True))


def _prime_factors(number: int) -> list[int]:
    factors, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return factors
