# SPDX-License-Identifier: Apache-2.0
"""A contact sheet of views: what a policy makes of some images, with the crops drawn where they were cut."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from monai_ssl.show_views.drawing import COLORS, INK, check_sheet, describe_draw, empty_figure, write_sheet
from monai_ssl.show_views.images import ShownImage
from monai_ssl.transforms import (
    IntensityStandardize,
    Params,
    ViewChain,
    c2l_views,
    convirt_views,
    moco_v2_views,
    radiograph_views,
)
from monai_ssl.transforms.sampling import rotation_matrix

if TYPE_CHECKING:
    from matplotlib.axes import Axes

VIEW_PRESETS = {
    "radiograph": radiograph_views,
    "c2l": c2l_views,
    "moco_v2": moco_v2_views,
    "convirt": convirt_views,
}


def save_view_sheet(
    images: list[ShownImage],
    output: str | Path,
    preset: str = "radiograph",
    size: int = 224,
    num_views: int = 5,
    seed: int = 0,
) -> Path:
    """Draw one row an image: the image with the crops' outlines, then each view with what was drawn for it.

    Args:
        images: the rows.
        output: PNG file to write; it appears whole or not at all.
        preset: key of ``VIEW_PRESETS``.
        size: side of the views in pixels.
        num_views: views of each image, from 1 to 8.
        seed: of the views; the same seed gives the same sheet.

    Returns:
        The file.

    Raises:
        ValueError: an argument is out of its range.
    """
    output = check_sheet(output, preset, VIEW_PRESETS, (size,), num_views)
    standardize = IntensityStandardize()
    multi = VIEW_PRESETS[preset](size, standardize=standardize)
    generator = torch.Generator().manual_seed(seed)

    columns, rows = num_views + 1, len(images)
    figure = empty_figure(
        columns, 2.8 * rows, f"preset {preset}: views of {size} x {size} pixels, outlined where they were cut"
    )
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, image in zip(grid, images, strict=True):
        x = torch.from_numpy(image.pixels)[None, None]  # (1, 1, rows, columns)
        _picture(axes[0], image.pixels, image.caption, "#bbbbbb", 0.8)
        for number, place in enumerate(axes[1:]):
            chain, color = multi.chains[number % len(multi)], COLORS[number]
            params = chain.draw(x.shape, generator, x.device)
            view = chain.apply(x, params)[0, 0] * standardize.std + standardize.mean
            _outline(axes[0], chain, params, color)
            _picture(place, view.numpy(), describe_draw(chain, params), color, 2.0)
    return write_sheet(figure, output)


def _picture(axes: Axes, pixels: np.ndarray, caption: str, color: str, width: float) -> None:
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1)
    axes.set_xlim(-0.5, pixels.shape[1] - 0.5)
    axes.set_ylim(pixels.shape[0] - 0.5, -0.5)
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel(caption, fontsize=8, color=INK)
    for spine in axes.spines.values():
        spine.set(color=color, linewidth=width)


def _outline(axes: Axes, chain: ViewChain, params: Params, color: str) -> None:
    """Draw on the image the box that a view shows."""
    number = next(number for number, transform in enumerate(chain.transforms) if transform.spatial)
    center, crop, angle = (params[f"{number}.{name}"] for name in ("center", "crop", "angle_deg"))
    corners = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]]) / 2
    # (5, 2) rows and columns; position u counts from the outer edge, the plot from the first pixel's centre
    points = center[0] + (corners * crop[0]) @ rotation_matrix(angle, None)[0].T - 0.5
    axes.plot(points[:, 1].numpy(), points[:, 0].numpy(), color=color, linewidth=1.2)
