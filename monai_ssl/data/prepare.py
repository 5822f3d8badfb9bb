# SPDX-License-Identifier: Apache-2.0
"""Prepare: decode every image of an index once and put it into a store, restartably and in several processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from monai_ssl.data.errors import UnreadableImageError
from monai_ssl.data.filling import ItemMaker, fill_store
from monai_ssl.data.intensity import IntensityPolicy, RadiographIntensity
from monai_ssl.data.items import encode, item_facts, shrink, shrunk_shape, write_item
from monai_ssl.data.readers import read_radiograph
from monai_ssl.data.store import STORE_SCHEMA, ImageStore

# Raise it when the same file and recipe would come out different.
STORE_FORMAT = 1

Reader = Callable[..., tuple[np.ndarray, dict]]


@dataclass(frozen=True)
class _ImageMaker(ItemMaker):
    """Images, shrunk to a longest side."""

    root: Path
    max_side: int
    policy: IntensityPolicy
    reader: Reader
    options: dict[str, Any]

    schema: ClassVar[pa.Schema] = STORE_SCHEMA

    def name(self, row: dict[str, Any]) -> str:
        """Content, and the size of the file, which tells apart equal pixels with different headers (windows)."""
        return f"{row['content_hash'][:2]}/{row['content_hash']}-{row['bytes'] or 0:x}.b2nd"

    def facts(self, target: Path, row: dict[str, Any]) -> dict[str, Any]:
        """See ``ItemMaker``."""
        return item_facts(target)

    def read(self, row: dict[str, Any]) -> tuple[np.ndarray, int, dict[str, Any]]:
        """See ``ItemMaker``."""
        path = self.root / row["path"]
        status = path.stat()
        if (status.st_size, status.st_mtime_ns) != (row["bytes"], row["mtime_ns"]):
            raise UnreadableImageError("the file changed since it was indexed; build the index again")
        image, meta = self.reader(path, **self.options)
        image = np.asarray(image, dtype=np.float32)
        stored, levels, limits = _standardised(image, meta, self.policy, self.max_side)
        shape, spacing = stored.shape, meta.get("pixel_spacing_mm")
        if spacing is not None:
            spacing = [float(mm) * old / new for mm, old, new in zip(spacing, image.shape, shape, strict=True)]
        return stored, levels, {"limits": [float(limit) for limit in limits], "spacing_mm": spacing}

    def write(self, target: Path, content: tuple[np.ndarray, int, dict[str, Any]]) -> None:
        """See ``ItemMaker``."""
        stored, levels, meta = content
        write_item(target, stored, levels, **meta)


def _standardised(
    image: np.ndarray, meta: dict[str, Any], policy: IntensityPolicy, max_side: int
) -> tuple[np.ndarray, int, tuple[float, float]]:
    """Shrink an image and give it its stored type: the array, its levels, and what 0 and 1 stand for."""
    limits = policy.limits(image, meta)
    stored, levels = encode(shrink(image, shrunk_shape(image.shape, max_side)), limits)
    return stored, levels, limits


def read_prepared(
    path: str | Path,
    policy: IntensityPolicy | None = None,
    max_side: int = 512,
    *,
    frame_rule: str | int = "middle",
    crop_borders: bool = False,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Read one radiograph as a store would give it, without a store.

    Args:
        path: of the file.
        policy: see :func:`prepare_store`, as all the others.
        max_side: longest side in pixels.
        frame_rule: which frame of a multi-frame image.
        crop_borders: cut uniform borders off.

    Returns:
        float32 (rows, columns) in [0, 1], and the facts of :func:`read_radiograph`.

    Raises:
        UnreadableImageError: the file is no usable image.
        FileNotFoundError: there is no such file.
    """
    image, meta = read_radiograph(path, frame_rule, crop_borders)
    try:
        stored, levels, _ = _standardised(image, meta, policy or RadiographIntensity(), max_side)
    except UnreadableImageError as error:
        raise UnreadableImageError(error.reason, path) from error
    return np.divide(stored, levels, dtype=np.float32), meta


def prepare_store(
    table_or_index_path: pa.Table | str | Path,
    root: str | Path,
    store_dir: str | Path,
    *,
    max_side: int = 512,
    policy: IntensityPolicy | None = None,
    frame_rule: str | int = "middle",
    crop_borders: bool = False,
    num_workers: int | None = None,
    max_refused_fraction: float = 0.5,
    reader: Reader = read_radiograph,
    progress: bool = True,
) -> ImageStore:
    """Decode the images of an index once into a store; run it again to go on after an interruption.

    Each image keeps its aspect ratio; one whose longest side is above ``max_side`` is shrunk by area averaging in
    floating point, none is enlarged. Images that are there already (same content, same recipe) are kept as they are.
    With another recipe (size, policy, reader) the images go to another subfolder, never among the old ones.

    A file that cannot be used becomes a refused row with a reason. Two processes that prepare the same folder at the
    same time take turns.

    Args:
        table_or_index_path: what ``build_index`` gave, or its file.
        root: the folder the index was made of.
        store_dir: folder for the store; it is made.
        max_side: longest side in pixels.
        policy: what becomes 0 and 1. Default: ``RadiographIntensity()``.
        frame_rule: which frame of a multi-frame image (see ``read_radiograph``).
        crop_borders: cut uniform borders off before shrinking.
        num_workers: processes; 0 works in this process. Default: all CPUs this process may use.
        max_refused_fraction: stop if more than this share of the images is refused while preparing.
        reader: called as ``reader(path, frame_rule=..., crop_borders=...)``; returns physical values, 2D or 3D, and
            ``meta`` for the policy (``pixel_spacing_mm`` is kept). It is known by its name: rename it if it changes.
        progress: show a progress bar with the time left, and a line at the end.

    Raises:
        FileNotFoundError: if the folder or the index is not there.
        ValueError: if the index lacks a column or holds no usable image, or an argument is out of range.
        RuntimeError: if too many images are refused, or the disk is full. What was prepared is kept.
    """
    if max_side < 1:
        raise ValueError(f"max_side is {max_side}; use 1 or more")
    policy = RadiographIntensity() if policy is None else policy
    options = {"frame_rule": frame_rule, "crop_borders": crop_borders}
    recipe = {
        "format": STORE_FORMAT,
        "max_side": max_side,
        "policy": policy.to_dict(),
        "reader": {"name": getattr(reader, "__qualname__", type(reader).__qualname__), **options},
    }
    return fill_store(
        _ImageMaker(Path(root), max_side, policy, reader, options),
        table_or_index_path,
        root,
        store_dir,
        recipe=recipe,
        num_workers=num_workers,
        max_refused_fraction=max_refused_fraction,
        progress=progress,
    )
