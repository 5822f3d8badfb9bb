# SPDX-License-Identifier: Apache-2.0
"""A contact sheet of views: what a policy makes of some images, with the crops drawn where they were cut."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from monai_ssl.data import UnreadableImageError, read_radiograph
from monai_ssl.data.files import write_whole
from monai_ssl.data.index import list_files
from monai_ssl.data.intensity import RadiographIntensity
from monai_ssl.data.items import encode, shrink, shrunk_shape
from monai_ssl.data.store import FACTS_NAME, ImageStore
from monai_ssl.transforms import (
    IntensityStandardize,
    Params,
    RandomCutout,
    RandomResample,
    ViewChain,
    c2l_views,
    moco_v2_views,
    radiograph_views,
)
from monai_ssl.transforms.sampling import rotation_matrix

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["VIEW_PRESETS", "ShownImage", "save_view_sheet", "some_images"]

VIEW_PRESETS = {"radiograph": radiograph_views, "c2l": c2l_views, "moco_v2": moco_v2_views}

_MAX_SIDE = 512  # as prepare stores images unless told otherwise
_MOST_UNREADABLE = 50
_COLORS = ("#d1495b", "#2e86ab", "#3c8d53", "#d98324", "#7a5195", "#8c6d46", "#4d5d6c", "#c06c9b")
_INK = "#444444"


@dataclass(frozen=True)
class ShownImage:
    """An image as training gets it.

    Attributes:
        name: where it comes from; for the terminal, not for the sheet.
        pixels: float32 (rows, columns) in [0, 1].
        caption: its kind and size.
    """

    name: str
    pixels: np.ndarray
    caption: str


def some_images(source: str | Path, count: int) -> list[ShownImage]:
    """Read a file, or some images spread over a folder or a store.

    Args:
        source: an image file, a folder of images, or a prepared store.
        count: number of images to take of a folder, 1 or more.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: no image can be read (of a single file: an ``UnreadableImageError``), or a count below 1.
    """
    source = Path(source)
    if count < 1:
        raise ValueError(f"num_images is {count}; use 1 or more")
    if source.is_file():
        return [_from_file(source)]
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: no such file or folder")
    for folder in (source, source / "store"):
        if (folder / FACTS_NAME).is_file():
            return _from_store(ImageStore(folder), count)
    return _from_folder(source, count)


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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    output = Path(output)
    if output.suffix.lower() != ".png":
        raise ValueError(f"the sheet is a PNG file; {output} does not end in .png")
    if not 1 <= num_views <= len(_COLORS) or not 8 <= size <= 2048:
        raise ValueError(f"num_views is {num_views} (1 to {len(_COLORS)}), size {size} (8 to 2048)")
    if preset not in VIEW_PRESETS:
        raise ValueError(f"there is no preset {preset!r}; there are {', '.join(VIEW_PRESETS)}")
    standardize = IntensityStandardize()
    multi = VIEW_PRESETS[preset](size, standardize=standardize)
    generator = torch.Generator().manual_seed(seed)

    columns, rows = num_views + 1, len(images)
    figure = Figure(figsize=(2.25 * columns + 0.3, 2.8 * rows + 0.55), dpi=100, layout="constrained")
    figure.suptitle(
        f"preset {preset}: views of {size} x {size} pixels, outlined where they were cut", fontsize=12, color=_INK
    )
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, image in zip(grid, images, strict=True):
        x = torch.from_numpy(image.pixels)[None, None]  # (1, 1, rows, columns)
        _picture(axes[0], image.pixels, image.caption, "#bbbbbb", 0.8)
        for number, place in enumerate(axes[1:]):
            chain, color = multi.chains[number % len(multi)], _COLORS[number]
            params = chain.draw(x.shape, generator, x.device)
            view = chain.apply(x, params)[0, 0] * standardize.std + standardize.mean
            _outline(axes[0], chain, params, color)
            _picture(place, view.numpy(), describe_draw(chain, params), color, 2.0)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, buffer.getvalue())
    return output


def describe_draw(chain: ViewChain, params: Params) -> str:
    """Say in a few short lines what was drawn for the first sample of a batch."""
    words = []
    for number, transform in enumerate(chain.transforms):
        mine = {key.partition(".")[2]: value[0] for key, value in params.items() if key.startswith(f"{number}.")}
        if isinstance(transform, RandomResample):
            share = float(mine["crop"].prod() / mine["extent"].prod())
            words.append(f"{share:.0%} of the area")
            words += [f"turned {mine['angle_deg']:+.0f}°"] if abs(mine["angle_deg"]) >= 0.5 else []
            words += ["mirrored"] if mine["flip"].any() else []
        factors = {name: mine[name] for name in ("brightness", "contrast", "gamma") if name in mine}
        words += [f"{name} {value:.2f}" for name, value in factors.items() if abs(value - 1) >= 0.005]
        words += [f"blur {mine['sigma']:.1f} px"] if mine.get("sigma", 0) > 0 else []
        words += [f"noise {mine['std']:.2f}"] if mine.get("std", 0) > 0 else []
        words += [f"{transform.holes} holes"] if isinstance(transform, RandomCutout) else []
    lines = [""]
    for word in words:
        joined = f"{lines[-1]}, {word}" if lines[-1] else word
        lines = [*lines[:-1], joined] if len(joined) <= 36 else [*lines, word]
    return "\n".join(lines)


def _from_file(path: Path) -> ShownImage:
    values, meta = read_radiograph(path)
    try:
        limits = RadiographIntensity().limits(values, meta)
        shape = shrunk_shape(values.shape, _MAX_SIDE)
        stored, levels = encode(shrink(values, shape), limits)
    except UnreadableImageError as error:
        raise UnreadableImageError(error.reason, path) from error
    size = f"{values.shape[0]} x {values.shape[1]}"
    kind = meta["kind"] if meta["kind"] == "nifti" else meta["kind"].upper()
    caption = f"{kind}, {meta['bits_stored']} bit, {size}" if meta.get("bits_stored") else f"{kind}, {size}"
    if meta.get("inverted"):
        caption += "\ninverted (MONOCHROME1)"
    return ShownImage(str(path), np.divide(stored, levels, dtype=np.float32), caption)


def _from_folder(folder: Path, count: int) -> list[ShownImage]:
    names = [name for name, _, _ in list_files(folder)[0]]
    images: dict[int, ShownImage] = {}
    reasons: list[str] = []
    for position in _spread(len(names), count):
        if len(images) == count or len(reasons) == _MOST_UNREADABLE:
            break
        try:
            images[position] = _from_file(folder / names[position])
        except (UnreadableImageError, OSError) as error:
            reasons.append(str(error))
    if not images:
        raise ValueError(
            f"{folder}: no image among {len(names)} files; " + (f"{reasons[0]}" if reasons else "it is empty")
        )
    return [images[position] for position in sorted(images)]


def _from_store(store: ImageStore, count: int) -> list[ShownImage]:
    if store.spatial_dims != 2:
        raise ValueError(f"{store.folder} holds volumes; only images of two dimensions are shown")
    images = []
    for row in sorted(_first(_spread(len(store), count), count)):
        rows, columns = store.shape(row)
        caption = f"stored, {8 * store.dtype(row).itemsize} bit, {rows} x {columns}"
        images.append(ShownImage(f"{store.folder}, row {row}", store.read(row), caption))
    return images


def _first(positions: Iterator[int], count: int) -> list[int]:
    return [position for position, _ in zip(positions, range(count), strict=False)]


def _spread(length: int, count: int) -> Iterator[int]:
    """Positions spread evenly over a list, then all others, in case some of the first are of no use."""
    chosen = dict.fromkeys(np.linspace(0, length - 1, min(count, length)).round().astype(int).tolist())
    yield from chosen
    yield from (position for position in range(length) if position not in chosen)


def _picture(axes: Axes, pixels: np.ndarray, caption: str, color: str, width: float) -> None:
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1)
    axes.set_xlim(-0.5, pixels.shape[1] - 0.5)
    axes.set_ylim(pixels.shape[0] - 0.5, -0.5)
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel(caption, fontsize=8, color=_INK)
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
