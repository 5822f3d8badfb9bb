# SPDX-License-Identifier: Apache-2.0
"""Which images a sheet shows: a file, or some of a folder or of a prepared store, as training gets them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from monai_ssl.data import UnreadableImageError, read_prepared
from monai_ssl.data.index import list_files
from monai_ssl.data.store import ImageStore, store_in

MOST_UNREADABLE = 50


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
    store = store_in(source)
    return _from_folder(source, count) if store is None else _from_store(store, count)


def _from_file(path: Path) -> ShownImage:
    pixels, meta = read_prepared(path)
    size = f"{meta['rows']} x {meta['columns']}"
    kind = meta["kind"] if meta["kind"] == "nifti" else meta["kind"].upper()
    caption = f"{kind}, {meta['bits_stored']} bit, {size}" if meta.get("bits_stored") else f"{kind}, {size}"
    if meta.get("inverted"):
        caption += "\ninverted (MONOCHROME1)"
    return ShownImage(str(path), pixels, caption)


def _from_folder(folder: Path, count: int) -> list[ShownImage]:
    names = [name for name, _, _ in list_files(folder)[0]]
    images: dict[int, ShownImage] = {}
    reasons: list[str] = []
    for position in spread_over(len(names), count):
        if len(images) == count or len(reasons) == MOST_UNREADABLE:
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
        raise ValueError(f"{store.folder} holds volumes; show them with a preset for volumes, such as --preset volume")
    images = []
    for row in sorted(spread_over(len(store), count, count)):
        rows, columns = store.shape(row)
        caption = f"stored, {8 * store.dtype(row).itemsize} bit, {rows} x {columns}"
        images.append(ShownImage(f"{store.folder}, row {row}", store.read(row), caption))
    return images


def spread_over(length: int, count: int, most: int | None = None) -> list[int]:
    """Positions spread evenly over a list, then all others, in case some of the first are of no use.

    Args:
        length: of the list.
        count: how many to spread.
        most: how many to give, all by default.
    """
    chosen = dict.fromkeys(np.linspace(0, length - 1, min(count, length)).round().astype(int).tolist())
    return [*chosen, *(position for position in range(length) if position not in chosen)][:most]
