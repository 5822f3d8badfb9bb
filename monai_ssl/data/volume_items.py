# SPDX-License-Identifier: Apache-2.0
"""Prepare volumes: turn, resample and encode every volume of an index once, with its label map and its place."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from monai_ssl.data.errors import UnreadableImageError
from monai_ssl.data.filling import ItemMaker, fill_store
from monai_ssl.data.foreground import body_threshold, foreground_box
from monai_ssl.data.grids import crop_grid, resample_image, resample_labels, resampled_grid
from monai_ssl.data.intensity import IntensityPolicy
from monai_ssl.data.items import encode, item_facts, write_item
from monai_ssl.data.store import STORE_SCHEMA, VOLUME_STORE_SCHEMA, ImageStore
from monai_ssl.data.stored_labels import check_label_values, label_points, read_label_map
from monai_ssl.data.tables import read_table
from monai_ssl.data.volume_intensity import volume_policy
from monai_ssl.data.volume_reader import open_volume
from monai_ssl.data.volumes import OpenVolume, check_orientation

# Raise it when the same file and recipe would come out different.
VOLUME_FORMAT = 1
_GONE = "gone"
# Columns beside content_hash and bytes that decide what an item holds.
_DECIDING = ("volume", "modality", "unit", "affine", "min_slices", "uneven")


@dataclass(frozen=True)
class _Prepared:
    """One volume ready to be written."""

    stored: np.ndarray
    levels: int
    meta: dict[str, Any]
    labels: np.ndarray | None


@dataclass(frozen=True)
class _VolumeMaker(ItemMaker):
    """Volumes with their label maps."""

    root: Path
    policy: IntensityPolicy
    orientation: str | None
    spacing_mm: tuple[float, float, float] | None
    crop_foreground: bool
    label_values: tuple[int, ...] | None
    label_hashes: dict[str, str] = field(repr=False)

    columns: ClassVar[tuple[str, ...]] = ("files", "kind", "label_map", *_DECIDING)
    schema: ClassVar[pa.Schema] = pa.schema([*STORE_SCHEMA, *VOLUME_STORE_SCHEMA])
    noun: ClassVar[str] = "volume"
    batch: ClassVar[int] = 1

    def __getstate__(self) -> dict[str, Any]:
        # Sent to a worker with every volume; names are given before.
        return self.__dict__ | {"label_hashes": {}}

    def name(self, row: dict[str, Any]) -> str:
        """Content, and all else that decides what comes out: header facts, the user's word, the label map's content."""
        known = [row[name] for name in ("bytes", *_DECIDING)]
        known.append(self.label_hashes.get(row["label_map"]))
        rest = hashlib.blake2b(json.dumps(known).encode(), digest_size=8).hexdigest()
        return f"{row['content_hash'][:2]}/{row['content_hash']}-{rest}.b2nd"

    def facts(self, target: Path, row: dict[str, Any]) -> dict[str, Any]:
        """See ``ItemMaker``."""
        facts = item_facts(target)
        if row["label_map"] is None:
            return facts
        labels = item_facts(_label_file(target))
        try:
            check_label_values(labels["label_values"], self.label_values)
        except UnreadableImageError as error:
            return {"reason": error.reason}
        return facts | {
            "label_item": f"{target.parent.name}/{_label_file(target).name}",
            "label_values": labels["label_values"],
            "label_points": labels["label_points"],
            "bytes": facts["bytes"] + labels["bytes"],
        }

    def read(self, row: dict[str, Any]) -> _Prepared:
        """See ``ItemMaker``."""
        own = _open(self.root, row).read()
        volume = own if self.orientation is None else own.to_orientation(self.orientation)
        labels = None
        if row["label_map"] is not None:
            labels = read_label_map(self.root / row["label_map"], volume, self.orientation)
            check_label_values(np.unique(labels).tolist(), self.label_values)
        modality = row["modality"] or volume.modality
        unit = row["unit"] or volume.facts.get("unit")
        limits = self.policy.limits(volume.array, {"modality": modality, "unit": unit})
        threshold = body_threshold(volume.array, modality)

        array, affine = volume.array, volume.affine
        if self.spacing_mm is not None:
            shape, affine = resampled_grid(array.shape, volume.affine, self.spacing_mm)
            array = resample_image(array, volume.affine, shape, affine)
            if labels is not None:
                labels = resample_labels(labels, volume.affine, shape, affine)
        body = foreground_box(array, threshold)
        if self.crop_foreground:
            box = body if labels is None or not labels.any() else _union(body, foreground_box(labels, 0, specks=0.0))
            array, affine = np.ascontiguousarray(array[box]), crop_grid(affine, box)
            labels = None if labels is None else np.ascontiguousarray(labels[box])
            body = tuple(slice(b.start - a.start, b.stop - a.start) for a, b in zip(box, body, strict=True))
        stored, levels = encode(array, limits)
        meta = {
            "limits": [float(limit) for limit in limits],
            "spacing_mm": np.linalg.norm(affine[:3, :3], axis=0).tolist(),
            "affine": affine.ravel().tolist(),
            "foreground": [end for part in body for end in (part.start, part.stop)],
            "source_shape": list(own.array.shape),
            "source_affine": own.affine.ravel().tolist(),
        }
        return _Prepared(stored, levels, meta, labels)

    def write(self, target: Path, content: _Prepared) -> None:
        """See ``ItemMaker``. The label map first: a volume that is there has its label map."""
        if content.labels is not None:
            values = np.unique(content.labels).tolist()
            points = label_points(content.labels).ravel().tolist()
            facts = {"label_values": values, "label_points": points}
            write_item(_label_file(target), content.labels, 1, label_map=True, **facts)
        write_item(target, content.stored, content.levels, **content.meta)


def prepare_volumes(
    index: pa.Table | str | Path,
    root: str | Path,
    store_dir: str | Path,
    *,
    policy: IntensityPolicy | str = "auto",
    orientation: str | None = "SPL",
    spacing_mm: Sequence[float] | None = None,
    crop_foreground: bool = False,
    label_values: Sequence[int] | None = None,
    num_workers: int | None = None,
    max_refused_fraction: float = 0.5,
    progress: bool = True,
) -> ImageStore:
    """Decode the volumes of an index once into a store for partial reads; run it again to go on where it stopped.

    Each volume is turned to ``orientation`` (axes permuted and flipped), resampled if wanted, mapped by the policy and
    kept in the narrowest type that loses nothing the policy keeps: whole Hounsfield units stay as they are. Its label
    map is read, turned and resampled with it and must lie on the same grid. What is there already (same content of the
    volume and of the label map, same recipe) is kept; with another recipe the volumes go to another subfolder.

    A volume that cannot be used, or whose label map cannot, becomes a refused row with a reason. Two processes that
    prepare the same folder at the same time take turns.

    Args:
        index: what ``build_volume_index`` gave, or its file.
        root: the folder the index was made of.
        store_dir: folder for the store; it is made.
        policy: what becomes 0 and 1, or its name (see ``volume_policy``).
        orientation: where the array axes run to, ``"SPL"``: from feet to head, front to back, right to left. None keeps
            each volume's own.
        spacing_mm: distance of the stored voxels along (D, H, W) after turning. Images are interpolated linearly,
            smoothed against aliasing where voxels get larger; in label maps the largest share wins. None keeps the
            spacing of each volume.
        crop_foreground: keep only the box of the body (above -500 HU in CT, above Otsu's threshold elsewhere), and of
            the labelled voxels. The affine says where it lies.
        label_values: labels that may occur, 0 among them or not. None: any from 0 to 255.
        num_workers: processes; 0 works in this process. Default: all CPUs this process may use.
        max_refused_fraction: stop if more than this share of the volumes is refused while preparing.
        progress: show a progress bar with the time left, and a line at the end.

    Returns:
        The store; ``affine``, ``spacing_mm``, ``foreground``, ``source_grid`` and ``read_label_map`` belong to volumes.

    Raises:
        FileNotFoundError: if the folder or the index is not there.
        ValueError: if the index lacks a column or holds no usable volume, or an argument is out of range.
        RuntimeError: if too many volumes are refused, or the disk is full. What was prepared is kept.
    """
    policy = volume_policy(policy)
    if orientation is not None:
        check_orientation(orientation)
        orientation = orientation.upper()
    if spacing_mm is not None:
        spacing_mm = tuple(float(step) for step in spacing_mm)
        if len(spacing_mm) != 3 or not all(np.isfinite(step) and step > 0 for step in spacing_mm):
            raise ValueError(f"spacing_mm is {spacing_mm}; use three numbers above 0, along (D, H, W)")
    if label_values is not None:
        label_values = tuple(sorted({int(value) for value in label_values}))
        if not label_values or label_values[0] < 0 or label_values[-1] > 255:
            raise ValueError(f"label_values is {label_values}; use whole numbers from 0 to 255")
    recipe = {
        "format": VOLUME_FORMAT,
        "orientation": orientation,
        "spacing_mm": None if spacing_mm is None else list(spacing_mm),
        "crop_foreground": bool(crop_foreground),
        "policy": policy.to_dict(),
        "reader": {"name": "open_volume"},
    }
    root = Path(root)
    table = index if isinstance(index, pa.Table) else read_table(index)
    maker = _VolumeMaker(
        root,
        policy,
        orientation,
        spacing_mm,
        bool(crop_foreground),
        label_values,
        _label_hashes(root, table),
    )
    return fill_store(
        maker,
        table,
        root,
        store_dir,
        recipe=recipe,
        num_workers=num_workers,
        max_refused_fraction=max_refused_fraction,
        progress=progress,
    )


def _open(root: Path, row: dict[str, Any]) -> OpenVolume:
    """Open the volume of a row, by the rules it was found by, unless its files changed since."""
    paths = [root / file for file in row["files"]]
    facts = [path.stat() for path in paths]
    if (sum(fact.st_size for fact in facts), max(fact.st_mtime_ns for fact in facts)) != (
        row["bytes"],
        row["mtime_ns"],
    ):
        raise UnreadableImageError("its files changed since they were indexed; build the index again")
    if row["kind"] != "dicom":
        return open_volume(paths[0], index=row["volume"])
    return open_volume(paths, index=row["volume"], min_slices=row["min_slices"], uneven=row["uneven"])


def _label_file(target: Path) -> Path:
    return target.with_name(f"{target.stem}-labels.b2nd")


def _label_hashes(root: Path, table: pa.Table) -> dict[str, str]:
    """Hash of the bytes of each label map's file; of one that is not there, a word that is no hash."""
    if "label_map" not in table.column_names:
        return {}
    names = sorted({name for name in table["label_map"].to_pylist() if name is not None})
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(names, pool.map(lambda name: _file_hash(root / name), names), strict=True))


def _file_hash(path: Path) -> str:
    try:
        digest = hashlib.blake2b(digest_size=16)
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
        return digest.hexdigest()
    except OSError:
        return _GONE


def _union(one: tuple[slice, ...], other: tuple[slice, ...]) -> tuple[slice, ...]:
    return tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(one, other, strict=True))
