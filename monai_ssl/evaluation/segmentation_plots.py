# SPDX-License-Identifier: Apache-2.0
"""Slices of volumes with the outlines of truth and prediction, as PNG bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["SlicedVolume", "cut_slices", "segmentation_png", "slice_places"]

_AXES = ((1, 2), (0, 2), (0, 1))  # what stays when one axis is cut: (H, W), (D, W), (D, H)


@dataclass(frozen=True)
class SlicedVolume:
    """What one row of the picture shows.

    Attributes:
        title: beside the row.
        image: three slices in [0, 1], one across each axis.
        truth: the same slices of class numbers.
        prediction: likewise.
        spacing_mm: along (D, H, W).
    """

    title: str
    image: Sequence[np.ndarray]
    truth: Sequence[np.ndarray]
    prediction: Sequence[np.ndarray]
    spacing_mm: Sequence[float]


def slice_places(truth: np.ndarray, prediction: np.ndarray) -> tuple[int, ...]:
    """Return for each axis the slice to show: where most of the truth is, else of the prediction, else the middle.

    Args:
        truth: class numbers (D, H, W), 0 for the background.
        prediction: likewise.
    """
    for mask in (truth > 0, prediction > 0):
        if mask.any():
            return tuple(int(mask.sum(axis=kept).argmax()) for kept in _AXES)
    return tuple(side // 2 for side in truth.shape)


def slice_boxes(shape: Sequence[int], places: Sequence[int]) -> list[tuple[slice, ...]]:
    """Return the box of one slice across each axis."""
    return [
        tuple(slice(place, place + 1) if axis == cut else slice(0, side) for axis, side in enumerate(shape))
        for cut, place in enumerate(places)
    ]


def cut_slices(volume: np.ndarray, places: Sequence[int]) -> list[np.ndarray]:
    """Return one slice across each axis."""
    return [volume.take(place, axis) for axis, place in enumerate(places)]


def segmentation_png(rows: Sequence[SlicedVolume], class_names: Sequence[str]) -> bytes:
    """Draw volumes below each other, each by three slices: truth as solid lines, prediction as dashed ones.

    Args:
        rows: the volumes.
        class_names: K names; every class has its colour.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    colours = [matplotlib.colormaps["tab10"](k % 10) for k in range(len(class_names))]
    figure = Figure(figsize=(9, 3.1 * len(rows) + 0.6), layout="constrained")
    for line, (row, axes) in enumerate(zip(rows, figure.subplots(len(rows), 3, squeeze=False), strict=True)):
        for cut, (axis, (down, across)) in enumerate(zip(axes, _AXES, strict=True)):
            image = row.image[cut]
            # Cut across depth an image has its first row on top; across the others depth runs upwards.
            axis.imshow(
                image,
                cmap="gray",
                vmin=0,
                vmax=1,
                aspect=row.spacing_mm[down] / row.spacing_mm[across],
                origin="upper" if cut == 0 else "lower",
            )
            axis.set_axis_off()
            for k, colour in enumerate(colours, 1):
                for mask, style in ((row.truth[cut] == k, "solid"), (row.prediction[cut] == k, "dashed")):
                    if mask.any() and min(mask.shape) > 1:
                        axis.contour(mask, levels=[0.5], colors=[colour], linestyles=style, linewidths=1.2)
        axes[0].set_title(row.title, fontsize=9, loc="left")
        if line == 0:
            lines = [Line2D([], [], color=c, label=n) for c, n in zip(colours, class_names, strict=True)]
            lines += [
                Line2D([], [], color="grey", label="truth"),
                Line2D([], [], color="grey", linestyle="dashed", label="prediction"),
            ]
            axes[2].legend(handles=lines[:12], fontsize=7, loc="upper right")
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    return picture.getvalue()
