# SPDX-License-Identifier: Apache-2.0
"""Folders of small volumes with label maps, and the index of them, written by hand."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pyarrow as pa

from monai_ssl.data import open_volume

# Slices first, to head, back and left: what the store holds, unless told otherwise.
SPL = np.array([[0.0, 0, -1.0, 30], [0, -1.5, 0, 20], [2.0, 0, 0, -10], [0, 0, 0, 1]])

INDEX_SCHEMA = pa.schema(
    [("path", pa.string()), ("files", pa.list_(pa.string())), ("volume", pa.int32()), ("kind", pa.string())]
    + [("bytes", pa.int64()), ("mtime_ns", pa.int64()), ("modality", pa.string()), ("unit", pa.string())]
    + [("affine", pa.list_(pa.float64())), ("min_slices", pa.int32()), ("uneven", pa.string())]
    + [("content_hash", pa.string()), ("status", pa.string()), ("reason", pa.string()), ("label_map", pa.string())]
)


def ct_volume(shape=(12, 20, 16), seed: int = 0) -> np.ndarray:
    """Air with a block of noisy tissue in it, in whole Hounsfield units, int16 (D, H, W)."""
    random = np.random.default_rng(seed)
    values = random.normal(-1000, 10, shape)
    inside = tuple(slice(side // 4, side - side // 4) for side in shape)
    values[inside] = random.normal(40, 200, values[inside].shape)
    return np.rint(values).astype(np.int16)


def label_map(shape=(12, 20, 16)) -> np.ndarray:
    """Labels 1 and 2 in the block of ``ct_volume``, uint8."""
    labels = np.zeros(shape, np.uint8)
    middle = [side // 2 for side in shape]
    labels[middle[0] - 2 : middle[0] + 2, middle[1] - 3 : middle[1], middle[2] - 2 : middle[2] + 2] = 1
    labels[middle[0] - 1 : middle[0] + 1, middle[1] : middle[1] + 3, middle[2] - 2 : middle[2]] = 2
    return labels


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray = SPL, codes: str | None = None) -> Path:
    """Write (D, H, W) as NIfTI (W, H, D), its axes turned to ``codes`` if wanted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array.transpose(2, 1, 0), affine[:, [2, 1, 0, 3]])
    if codes:
        turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes))
        image = image.as_reoriented(turn)
    nib.save(image, path)
    return path


def index_row(root: Path, files: list[str], *, volume: int = 0, modality: str | None = "CT", **row: Any) -> dict:
    """Row of the index for the files of one volume."""
    paths = [root / file for file in files]
    opened = open_volume(paths[0] if len(paths) == 1 else paths, index=volume)
    read = opened.read()
    facts = [path.stat() for path in paths]
    return {
        "path": files[0] if len(files) == 1 else str(Path(files[0]).parent),
        "files": files,
        "volume": volume,
        "kind": opened.facts["kind"],
        "bytes": sum(fact.st_size for fact in facts),
        "mtime_ns": max(fact.st_mtime_ns for fact in facts),
        "modality": opened.facts["modality"] or modality,
        "unit": opened.facts["unit"],
        "affine": opened.affine.ravel().tolist(),
        "min_slices": 3,
        "uneven": "refuse",
        "content_hash": hashlib.md5(read.array.tobytes()).hexdigest(),
        "status": "ok",
        "reason": None,
        "label_map": None,
        **row,
    }


def index_of(rows: list[dict], **columns: list) -> pa.Table:
    """Table of ``index_row``s with further columns."""
    table = pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    return table


def write_volumes(root: Path, count: int = 3, shape=(12, 20, 16), labels: bool = True) -> pa.Table:
    """Write CT volumes ``v0.nii`` ... with label maps ``v0-seg.nii.gz`` ... and return their index."""
    rows = []
    for number in range(count):
        write_nifti(root / f"v{number}.nii", ct_volume(shape, number))
        if labels:
            write_nifti(root / f"v{number}-seg.nii.gz", label_map(shape))
        rows.append(index_row(root, [f"v{number}.nii"], label_map=f"v{number}-seg.nii.gz" if labels else None))
    return index_of(rows)
