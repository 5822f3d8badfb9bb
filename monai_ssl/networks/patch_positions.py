# SPDX-License-Identifier: Apache-2.0
"""Position embeddings of a vision transformer's patches, brought to the grid of images of another size."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import interpolate

__all__ = ["patch_grid", "resize_positions"]


def resize_positions(positions: torch.Tensor, old_grid: list[int], new_grid: list[int]) -> torch.Tensor:
    """Interpolate a ViT's position embeddings to another grid of patches (cubic in 2D, linear in 3D).

    Source: Dosovitskiy et al., arXiv 2010.11929, section 3.2 (2D interpolation at another resolution).

    Args:
        positions: (1, tokens, F), tokens in array order of ``old_grid``.
        old_grid: patches along each axis.
        new_grid: wanted patches along each axis; equal to ``old_grid``: ``positions`` themselves come back.

    Returns:
        (1, new tokens, F).
    """
    if list(old_grid) == list(new_grid):
        return positions
    maps = positions.transpose(1, 2).unflatten(2, list(old_grid))  # (1, tokens, F) -> (1, F, *old_grid)
    mode = "bicubic" if len(old_grid) == 2 else "trilinear"
    maps = interpolate(maps.float(), size=list(new_grid), mode=mode, align_corners=False)
    return maps.flatten(2).transpose(1, 2).to(positions.dtype)  # (1, F, *new_grid) -> (1, tokens, F)


def patch_grid(arguments: dict[str, Any], spatial_dims: int) -> tuple[int, ...] | None:
    """Return a ViT's patches along each axis, if the arguments it was built with tell."""
    if not {"img_size", "patch_size"} <= arguments.keys():
        return None
    sizes, steps = (
        [value] * spatial_dims if isinstance(value, int) else value
        for value in (arguments["img_size"], arguments["patch_size"])
    )
    return tuple(size // step for size, step in zip(sizes, steps, strict=True))
