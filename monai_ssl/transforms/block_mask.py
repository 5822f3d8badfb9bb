# SPDX-License-Identifier: Apache-2.0
"""Random block masks for masked image modelling: blocks of a regular grid, 2D or 3D, drawn on the images' device.

The grid of blocks follows He et al., *Masked Autoencoders Are Scalable Vision Learners*, CVPR 2022, section 3 (random
sampling without replacement, uniform over the blocks), and Xie et al., *SimMIM*, CVPR 2022, section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from monai_ssl.transforms.base import drawing_device

__all__ = ["block_grid", "blocks_at", "blocks_with", "count_masked", "draw_block_mask", "expand_blocks"]


def block_grid(spatial: Sequence[int], block_size: int | Sequence[int]) -> tuple[int, ...]:
    """Return how many blocks there are along each axis.

    Args:
        spatial: image size in voxels, (H, W) or (D, H, W).
        block_size: side of a block in voxels, one number for all axes or one for each.

    Raises:
        ValueError: another number of axes, or an image size that is no multiple of the block size.

    Example:
        >>> block_grid((224, 160), 16)
        (14, 10)
    """
    sides = _per_axis(block_size, len(spatial))
    if any(size < 1 or size % side for size, side in zip(spatial, sides, strict=True)):
        raise ValueError(f"the image size {tuple(spatial)} must be a multiple of the block size {sides}")
    return tuple(size // side for size, side in zip(spatial, sides, strict=True))


def count_masked(num_blocks: int, mask_ratio: float) -> int:
    """Return the number of blocks that are masked out of ``num_blocks``: the nearest integer.

    Raises:
        ValueError: ``mask_ratio`` is not within (0, 1), or it would mask no block or all of them.
    """
    if not 0 < mask_ratio < 1:
        raise ValueError(f"mask_ratio must be greater than 0 and less than 1, got {mask_ratio}")
    count = round(mask_ratio * num_blocks)
    if not 0 < count < num_blocks:
        raise ValueError(
            f"mask_ratio {mask_ratio} would mask {count} of {num_blocks} blocks; take larger images or smaller blocks"
        )
    return count


def draw_block_mask(
    batch: int,
    grid: Sequence[int],
    mask_ratio: float,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    eligible: torch.Tensor | None = None,
) -> torch.Tensor:
    """Draw blocks without replacement, each sample its own, all with the same probability.

    Args:
        batch: B.
        grid: blocks along each axis.
        mask_ratio: share of the blocks to mask, within (0, 1). Every sample gets exactly the nearest integer to
            ``mask_ratio`` times its number of eligible blocks (halves to the even one).
        generator: source of randomness, on ``device``; None is torch's global one.
        device: where the mask lives; the generator's device (else the CPU) when None.
        eligible: (B, 1, \\*grid) bool, the blocks that may be masked (:func:`blocks_with`); None: all.

    Returns:
        (B, 1, \\*grid) bool, True where masked.

    Raises:
        ValueError: see :func:`count_masked`; or ``eligible`` has another shape.

    Example:
        >>> mask = draw_block_mask(2, (4, 4), 0.75, torch.Generator().manual_seed(0))
        >>> mask.sum((1, 2, 3)).tolist()
        [12, 12]
    """
    blocks = math.prod(grid)
    count: int | torch.Tensor = count_masked(blocks, mask_ratio)
    scores = torch.rand(batch, blocks, generator=generator, device=drawing_device(generator, device))
    if eligible is not None:
        if eligible.shape != (batch, 1, *grid):
            raise ValueError(f"eligible must have shape {(batch, 1, *grid)}, got {tuple(eligible.shape)}")
        allowed = eligible.flatten(1)  # (B, 1, *grid) -> (B, blocks)
        scores = scores.masked_fill(~allowed, 2.0)  # above every draw: last in the order
        count = (mask_ratio * allowed.sum(1, keepdim=True).double()).round()
    rank = scores.argsort(1).argsort(1)  # each block's place in the order of its sample
    return (rank < count).view(batch, 1, *grid)


def blocks_with(valid: torch.Tensor, block_size: int | Sequence[int]) -> torch.Tensor:
    """Return (B, 1, \\*grid) bool: the blocks with at least one True voxel of ``valid`` (B, 1, \\*spatial) bool.

    Raises:
        ValueError: see :func:`block_grid`.
    """
    grid = block_grid(valid.shape[2:], block_size)
    pairs = [n for cells, size in zip(grid, valid.shape[2:], strict=True) for n in (cells, size // cells)]
    # (B, 1, *spatial) -> (B, 1, grid_0, side_0, grid_1, side_1, ...)
    return valid.reshape(*valid.shape[:2], *pairs).amax(tuple(range(3, 2 + len(pairs), 2)))


def expand_blocks(mask: torch.Tensor, block_size: int | Sequence[int]) -> torch.Tensor:
    """Repeat each block's value over its voxels: (B, 1, \\*grid) -> (B, 1, \\*spatial)."""
    grid = mask.shape[2:]
    sides = _per_axis(block_size, len(grid))
    apart = mask.reshape(*mask.shape[:2], *[n for cells in grid for n in (cells, 1)])
    pairs = [n for cells, side in zip(grid, sides, strict=True) for n in (cells, side)]
    # (B, 1, grid_0, side_0, grid_1, side_1, ...) -> (B, 1, *spatial)
    spatial = [cells * side for cells, side in zip(grid, sides, strict=True)]
    return apart.expand(*mask.shape[:2], *pairs).reshape(*mask.shape[:2], *spatial)


def blocks_at(mask: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Bring a block mask to the size of a feature map: True where the place touches a True block.

    Args:
        mask: (B, 1, \\*grid) bool.
        size: spatial size of the feature map, finer or coarser than the grid.

    Returns:
        (B, 1, \\*size) bool.
    """
    pool = functional.adaptive_max_pool2d if mask.ndim == 4 else functional.adaptive_max_pool3d
    return pool(mask.float(), tuple(size)) > 0


def _per_axis(block_size: int | Sequence[int], axes: int) -> tuple[int, ...]:
    sides = (block_size,) * axes if isinstance(block_size, int) else tuple(block_size)
    if len(sides) != axes or min(sides) < 1:
        raise ValueError(f"block_size must be one positive integer or {axes} of them, got {block_size}")
    return sides
