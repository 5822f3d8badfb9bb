# SPDX-License-Identifier: Apache-2.0
"""Crops of one size from a volume: on a grid and at random places, and how much they overlap.

The geometry of Wu, Zhuang, Chen, *VoCo*, CVPR 2024, arXiv 2402.17300, section 3. Positions are in pixels of the array
and count from its outer edge, as in :mod:`monai_ssl.transforms.sampling`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from monai_ssl.transforms.base import drawing_device, without_autocast
from monai_ssl.transforms.pyramid import AveragePyramid
from monai_ssl.transforms.sampling import sample_boxes

__all__ = ["box_overlap", "cut_boxes", "draw_box_centers", "grid_box_centers"]


def grid_box_centers(
    spatial: Sequence[int], grid: Sequence[int], device: torch.device | str | None = None
) -> torch.Tensor:
    """Return the centres (N, n) of the N = prod(grid) cells that tile an image, last axis fastest.

    Args:
        spatial: image size in pixels, (H, W) or (D, H, W); it need not be a multiple of the grid.
        grid: cells along each axis; cell i is ``spatial[i] / grid[i]`` pixels long.
        device: where the result lives.

    Raises:
        ValueError: ``grid`` has another number of axes, or less than one cell along one.

    Example:
        >>> grid_box_centers((4, 6), (1, 2)).tolist()
        [[2.0, 1.5], [2.0, 4.5]]
    """
    if len(grid) != len(spatial) or min(grid) < 1:
        raise ValueError(f"grid must have {len(spatial)} positive numbers for images {tuple(spatial)}, got {grid}")
    axes = [
        (torch.arange(cells, device=device) + 0.5) * (size / cells) for size, cells in zip(spatial, grid, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)  # (*grid, n) -> (N, n)


def draw_box_centers(
    batch: int,
    count: int,
    spatial: Sequence[int],
    sides: Sequence[float],
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Draw centres (B, count, n) of boxes that lie within the image, uniformly.

    Args:
        batch: B.
        count: boxes in each image.
        spatial: image size in pixels.
        sides: the boxes' sides in pixels, at most the image's.
        generator: source of randomness, on ``device``; None is torch's global one.
        device: where the result lives; the generator's device (else the CPU) when None.
    """
    device = drawing_device(generator, device)
    lot = torch.rand(batch, count, len(spatial), generator=generator, device=device)
    size, side = (torch.tensor(value, dtype=torch.float32, device=device) for value in (spatial, sides))
    return side / 2 + lot * (size - side)


def box_overlap(centers: torch.Tensor, others: torch.Tensor, sides: Sequence[float]) -> torch.Tensor:
    r"""Return which share of each box lies in each of the others, all of one size.

    .. math:: y_{rj} = \prod_i \max(0, 1 - |c_{ri} - o_{ji}| / s_i)

    Where the others tile the image, and the box is within it, its shares sum to 1.

    Args:
        centers: (B, R, n) in pixels.
        others: (N, n), or (B, N, n) for others that differ between images.
        sides: s, n sides in pixels.

    Returns:
        (B, R, N) within [0, 1].

    Example:
        >>> box_overlap(torch.tensor([[[2.0, 2.25]]]), grid_box_centers((4, 6), (1, 2)), (4, 3)).tolist()
        [[[0.75, 0.25]]]
    """
    side = torch.tensor(tuple(sides), dtype=centers.dtype, device=centers.device)
    distance = (centers[:, :, None] - others.to(centers.dtype).unsqueeze(-3)).abs()  # (B, R, N, n)
    return (1 - distance / side).clamp(min=0).prod(3)


@torch.no_grad()
def cut_boxes(x: torch.Tensor, centers: torch.Tensor, sides: Sequence[float], size: Sequence[int]) -> torch.Tensor:
    """Cut boxes out of images and bring them to one size, anti-aliased as :class:`RandomResample` does it.

    Args:
        x: (B, C, \\*spatial) floating point.
        centers: (B, R, n) in pixels, or (R, n) for the same places in all images.
        sides: n sides in pixels.
        size: n sides of the result in pixels.

    Returns:
        (B, R, C, \\*size), of the type of ``x``.
    """
    batch, n = len(x), x.ndim - 2
    centers = centers.expand(batch, -1, -1)
    still = torch.zeros(batch, device=x.device)
    params = {
        "crop": torch.tensor([tuple(sides)], dtype=torch.float32, device=x.device).expand(batch, -1),
        "extent": torch.tensor([tuple(x.shape[2:])], device=x.device).expand(batch, -1),
        "angle_deg": still,
        "flip": torch.zeros(batch, n, dtype=torch.bool, device=x.device),
    }
    if n == 3:
        params["axis"] = torch.tensor([[1.0, 0.0, 0.0]], device=x.device).expand(batch, 3)
    real = x if x.dtype in (torch.float32, torch.float64) else x.float()
    pyramid = AveragePyramid(real)
    out = x.new_empty(batch, centers.shape[1], x.shape[1], *size)
    with without_autocast(x.device):
        for i in range(centers.shape[1]):  # one box of each image at a time, so that the images are not copied
            here = params | {"center": centers[:, i]}
            out[:, i] = sample_boxes(real, here, tuple(size), "bilinear", "border", pyramid)
    return out
