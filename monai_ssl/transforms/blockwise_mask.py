# SPDX-License-Identifier: Apache-2.0
"""Block-wise masks: whole boxes of neighbouring patches are hidden, so that no neighbour gives a patch away.

Bao, Dong, Piao, Wei, *BEiT: BERT Pre-Training of Image Transformers*, ICLR 2022, arXiv 2106.08254, algorithm 1, which
iBOT (arXiv 2111.07832) and DINOv2 (arXiv 2304.07193) use. It adds boxes of random place, size and aspect until enough
patches are hidden. Here the same is done for a whole batch on its device, in 2D or 3D, and to the exact number: boxes
are taken in turn, the last one only as far as its inner part is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from monai_ssl.transforms.base import drawing_device

__all__ = ["draw_blockwise_mask", "masked_counts"]

_BOXES = 16  # more than the number that is needed, in all but freak draws


def draw_blockwise_mask(
    counts: Sequence[int],
    grid: Sequence[int],
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    min_block: int = 4,
    aspect: float = 0.3,
) -> torch.Tensor:
    r"""Draw boxes of patches for each sample until the given number of patches is masked.

    A box has an area (volume) of U(``min_block``, count) patches; its sides along any two axes have a ratio from
    ``aspect`` to 1 / ``aspect``; its place is uniform over those where it lies within the grid.

    Args:
        counts: how many patches to mask in each of the B samples, from 0 to all.
        grid: patches along each axis.
        generator: source of randomness, on ``device``; None is torch's global one.
        device: where the mask lives; the generator's device (else the CPU) when None.
        min_block: smallest area of a box, in patches. BEiT takes 16 on a grid of 14 x 14.
        aspect: smallest ratio of two sides, in (0, 1]; 0.3 in BEiT.

    Returns:
        (B, 1, \*grid) bool, True where masked.

    Raises:
        ValueError: a number is out of its range.

    Example:
        >>> draw_blockwise_mask([0, 6], (4, 4), torch.Generator().manual_seed(0)).sum((1, 2, 3)).tolist()
        [0, 6]
    """
    patches = math.prod(grid)
    if not counts or min(counts) < 0 or max(counts) > patches:
        raise ValueError(f"counts must be from 0 to the grid's {patches} patches, got {list(counts)}")
    if min_block < 1 or not 0 < aspect <= 1:
        raise ValueError(f"min_block must be at least 1 and aspect in (0, 1], got {min_block} and {aspect}")
    device = drawing_device(generator, device)
    batch, axes = len(counts), len(grid)
    draws = torch.rand(batch, _BOXES, 1 + 2 * axes, generator=generator, device=device)
    wanted = torch.tensor(counts)[:, None]  # (B, 1)
    if device.type == "cuda":  # pinned, it need not wait for what the device is doing
        wanted = wanted.pin_memory().to(device, non_blocking=True)
    wanted = wanted.to(device)
    area = min_block + draws[..., :1] * (wanted[..., None] - min_block).clamp(min=0)  # (B, boxes, 1)
    stretch = (draws[..., 1 : 1 + axes] - 0.5) * -math.log(aspect)
    stretch = stretch - stretch.mean(2, keepdim=True)  # logarithms of the sides, relative to a cube's
    sides = (area ** (1 / axes) * stretch.exp()).round().clamp(min=1)  # (B, boxes, axes)

    distance = torch.zeros(batch, _BOXES, *grid, device=device)  # 1 on a box's border, 0 in its middle
    for axis, size in enumerate(grid):
        side = sides[..., axis].clamp(max=size)  # (B, boxes)
        center = side / 2 + (draws[..., 1 + axes + axis] * (size - side + 1)).floor()
        places = torch.arange(size, device=device) + 0.5
        along = (places - center[..., None]).abs() / (side[..., None] / 2)  # (B, boxes, size)
        shape = [batch, _BOXES, *[size if other == axis else 1 for other in range(axes)]]
        distance = torch.maximum(distance, along.view(shape))
    turn = torch.arange(_BOXES, device=device).view(-1, *[1] * axes)
    score = torch.where(distance < 1, turn + distance, torch.inf).amin(1)  # (B, *grid): first come, first masked
    around = _BOXES + distance[:, 0] / (1 + distance[:, 0])  # if the boxes are not enough, the first one grows
    rank = score.minimum(around).flatten(1).argsort(1).argsort(1)
    return (rank < wanted).view(batch, 1, *grid)


def masked_counts(batch: int, patches: int, share: float, ratio: tuple[float, float]) -> list[int]:
    """Numbers of patches to mask in the samples of a batch: a share of them is masked, by ratios spread over a range.

    The ratios are evenly spaced over the range, in place of independent draws, so that the sum is known beforehand and
    no device has to be asked for it (DINOv2's released code also draws one ratio from each of equal parts of it).

    Args:
        batch: B.
        patches: N of a sample.
        share: of the samples that are masked, in (0, 1]; at least one sample is.
        ratio: lowest and highest share of a masked sample's patches, within (0, 1).

    Returns:
        B numbers, the zeros first; those of masked samples are from 1 to N - 1.

    Raises:
        ValueError: a number is out of its range, or there is only one patch.

    Example:
        >>> masked_counts(4, 100, 0.5, (0.1, 0.5))
        [0, 0, 20, 40]
    """
    low, high = ratio
    if not 0 < share <= 1 or not 0 < low <= high < 1:
        raise ValueError(f"share must be in (0, 1] and ratio within (0, 1), lowest first, got {share} and {ratio}")
    if patches < 2:
        raise ValueError("an image of one patch can't be masked in part: take larger images or a smaller patch_size")
    masked = max(1, round(share * batch))
    ratios = [low + (high - low) * (number + 0.5) / masked for number in range(masked)]
    return [0] * (batch - masked) + [min(max(1, round(r * patches)), patches - 1) for r in ratios]
