# SPDX-License-Identifier: Apache-2.0
"""A contact sheet of views of volumes: three orthogonal slices of the volume and of each view, true to scale."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import ConvexHull

from monai_ssl.show_views.drawing import COLORS, INK, check_sheet, describe_draw, empty_figure, write_sheet
from monai_ssl.show_views.volumes import ORIENTATION, ShownVolume
from monai_ssl.transforms import (
    IntensityStandardize,
    MultiView,
    Params,
    ViewChain,
    masked_views,
    volume_augmentation,
    volume_views,
    whole_views,
)
from monai_ssl.transforms.sampling import rotation_matrix

Preset = Callable[[tuple[int, ...], ShownVolume, IntensityStandardize], MultiView]


def _contrastive(size: tuple[int, ...], volume: ShownVolume, standardize: IntensityStandardize) -> MultiView:
    return volume_views(size, _policy_of(volume), limits_hu=volume.limits_hu, standardize=standardize)


def _masked(size: tuple[int, ...], volume: ShownVolume, standardize: IntensityStandardize) -> MultiView:
    return masked_views(size, standardize=standardize)


def _whole(size: tuple[int, ...], volume: ShownVolume, standardize: IntensityStandardize) -> MultiView:
    return whole_views(size, standardize=standardize)


def _segmentation(size: tuple[int, ...], volume: ShownVolume, standardize: IntensityStandardize) -> MultiView:
    return volume_augmentation(size, _policy_of(volume), standardize=standardize)


def _policy_of(volume: ShownVolume) -> str | None:
    """The modality, if there are views for it."""
    return volume.modality if volume.modality in ("CT", "MR") else None


VOLUME_PRESETS: dict[str, Preset] = {
    "volume": _contrastive,
    "masked": _masked,
    "whole": _whole,
    "segmentation": _segmentation,
}

# Axis across which a slice is cut, in the orientation that prepare gives.
_PLANES = ("axial", "coronal", "sagittal")


def save_volume_sheet(
    volumes: list[ShownVolume],
    output: str | Path,
    preset: str = "volume",
    size: int | tuple[int, int, int] = 96,
    num_views: int = 5,
    seed: int = 0,
) -> Path:
    """Draw three rows a volume, one for each plane: its middle slice, then the middle slice of each view.

    Pictures have the sides that the voxels' spacing gives them. What was drawn stands below the last row.

    Args:
        volumes: three rows each.
        output: PNG file to write; it appears whole or not at all.
        preset: key of ``VOLUME_PRESETS``.
        size: side of the views in voxels, or three sides.
        num_views: views of each volume, from 1 to 8.
        seed: of the views; the same seed gives the same sheet.

    Returns:
        The file.

    Raises:
        ValueError: an argument is out of its range.
    """
    sides = (size,) * 3 if isinstance(size, int) else tuple(size)
    if len(sides) != 3:
        raise ValueError(f"size is {size}; use one number, or three for slices, rows and columns")
    output = check_sheet(output, preset, VOLUME_PRESETS, sides, num_views)
    standardize = IntensityStandardize()
    generator = torch.Generator().manual_seed(seed)
    columns = num_views + 1
    heights = [height for volume in volumes for height in _heights(volume)]
    title = f"preset {preset}: views of {' x '.join(map(str, sides))} voxels, outlined where they were cut"
    figure = empty_figure(columns, sum(heights), title)
    grid = figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights)
    for number, volume in enumerate(volumes):
        block = grid[3 * number : 3 * number + 3]
        multi = VOLUME_PRESETS[preset](sides, volume, standardize)
        x = torch.from_numpy(volume.voxels)[None, None]  # (1, 1, D, H, W)
        _planes(block[:, 0], volume.voxels, volume.spacing_mm, volume, volume.caption, "#bbbbbb", 0.8)
        for column in range(num_views):
            chain, color = multi.chains[column % len(multi)], COLORS[column]
            params = chain.draw(x.shape, generator, x.device)
            view = chain.apply(x, params)[0, 0] * standardize.std + standardize.mean
            crop = params[_name(chain, "crop")][0]
            spacing = [float(side) / n * mm for side, n, mm in zip(crop, sides, volume.spacing_mm, strict=True)]
            _outlines(block[:, 0], chain, params, color)
            _planes(block[:, column + 1], view.numpy(), spacing, volume, describe_draw(chain, params), color, 2.0)
    return write_sheet(figure, output)


def _heights(volume: ShownVolume) -> list[float]:
    """Inches for the slices of the volume across each axis; the caption has its place in the last."""
    d, h, w = (side * mm for side, mm in zip(volume.voxels.shape, volume.spacing_mm, strict=True))
    inches = [2.1 * min(max(ratio, 0.3), 1.6) + 0.15 for ratio in (h / w, d / w, d / h)]
    return [*inches[:2], inches[2] + 0.9]


def _planes(
    axes: np.ndarray,
    voxels: np.ndarray,
    spacing_mm: list[float] | tuple[float, ...],
    volume: ShownVolume,
    caption: str,
    color: str,
    width: float,
) -> None:
    """Draw the middle slice across each axis, true to scale; with the feet below, where the orientation is known."""
    known = volume.orientation == ORIENTATION
    for across, place in enumerate(axes):
        pixels = voxels.take(voxels.shape[across] // 2, across)
        rows_mm, columns_mm = (mm for axis, mm in enumerate(spacing_mm) if axis != across)
        upwards = known and across > 0
        place.imshow(pixels, cmap="gray", vmin=0, vmax=1, aspect=rows_mm / columns_mm)
        place.set_xlim(-0.5, pixels.shape[1] - 0.5)
        ends = (pixels.shape[0] - 0.5, -0.5)
        place.set_ylim(*(ends[::-1] if upwards else ends))
        place.set(xticks=[], yticks=[])
        for spine in place.spines.values():
            spine.set(color=color, linewidth=width)
        if voxels is volume.voxels:
            place.set_ylabel(_PLANES[across] if known else f"across axis {across}", fontsize=9, color=INK)
    axes[-1].set_xlabel(caption, fontsize=8, color=INK)


def _outlines(axes: np.ndarray, chain: ViewChain, params: Params, color: str) -> None:
    """Draw on the volume's slices the shadow of the box that a view shows."""
    corners = box_corners(chain, params).numpy()
    for across, place in enumerate(axes):
        points = np.delete(corners, across, axis=1)
        hull = points[ConvexHull(points).vertices]
        closed = np.concatenate([hull, hull[:1]])
        place.plot(closed[:, 1], closed[:, 0], color=color, linewidth=1.2)


def box_corners(chain: ViewChain, params: Params) -> torch.Tensor:
    """(8, 3) corners of the box that the first sample's view shows, in voxels from the first voxel's centre."""
    center, crop, angle, axis = (params[_name(chain, name)] for name in ("center", "crop", "angle_deg", "axis"))
    signs = torch.cartesian_prod(*[torch.tensor([-0.5, 0.5])] * 3)
    return center[0] + (signs * crop[0]) @ rotation_matrix(angle, axis)[0].T - 0.5


def _name(chain: ViewChain, name: str) -> str:
    """Key of a parameter of the chain's resampling."""
    return f"{next(number for number, transform in enumerate(chain.transforms) if transform.spatial)}.{name}"
