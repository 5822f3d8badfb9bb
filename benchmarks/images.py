# SPDX-License-Identifier: Apache-2.0
"""Synthetic 16-bit grey images, smooth with fine noise as radiographs are, in memory and as files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

_NOISE = 150.0  # standard deviation in grey levels of 65,535: about what a detector of 12 bits shows


def grey_images(count: int, side: int, seed: int = 0) -> np.ndarray:
    """uint16 (count, side, side) over the whole 16-bit range."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(count, 1, side, side)
    for cells, weight in ((4, 1.0), (16, 0.4), (64, 0.1)):
        field = torch.rand(count, 1, cells, cells, generator=generator)
        total += weight * F.interpolate(field, size=(side, side), mode="bicubic", align_corners=False)
    low, high = total.amin((1, 2, 3), keepdim=True), total.amax((1, 2, 3), keepdim=True)
    values = (total - low) / (high - low) * 65535 + _NOISE * torch.randn(total.shape, generator=generator)
    return values.clamp_(0, 65535).round_().squeeze(1).numpy().astype(np.uint16)


def grey_ramp(side: int) -> np.ndarray:
    """uint16 (side, side): a ramp over the 16-bit range, without its last level."""
    return np.linspace(0, 65534, side * side).round().astype(np.uint16).reshape(side, side)


def eight_bit(image: np.ndarray) -> np.ndarray:
    """The upper 8 of 16 bits."""
    return (image >> 8).astype(np.uint8)


def write_folders(images: np.ndarray, folder: Path) -> tuple[Path, Path]:
    """Write the images as 16-bit grey PNG for us, and as 8-bit grey PNG for those who can read no more.

    Returns:
        The two folders.
    """
    deep, shallow = folder / "grey16", folder / "grey8"
    for target in (deep, shallow):
        target.mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(deep / f"{number:04d}.png", compress_level=1)
        Image.fromarray(eight_bit(image)).save(shallow / f"{number:04d}.png")
    return deep, shallow
