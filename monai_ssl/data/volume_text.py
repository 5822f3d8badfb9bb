# SPDX-License-Identifier: Apache-2.0
"""Say in plain text what the volumes of a file or folder are: geometry and values, without identifiers."""

from __future__ import annotations

import collections
from pathlib import Path

import numpy as np

from monai_ssl.data.errors import UnreadableImageError
from monai_ssl.data.volumes import FoundVolumes, OpenVolume, Volume

_SHOWN = 6  # volumes of a file or folder that are decoded and described; the others are counted
_NAMED = {"nifti": "NIfTI", "dicom": "DICOM", "itk": "NRRD or MetaImage"}


def describe_volumes(found: FoundVolumes, path: str | Path) -> str:
    """Describe the volumes of a file or folder; the first ones are decoded.

    Args:
        found: what ``open_volumes`` gave.
        path: the file or folder, for the first line.

    Raises:
        UnreadableImageError: if it holds no volume, with the reasons.
    """
    reasons = collections.Counter()
    for refusal in found.refused:
        reasons[refusal.reason] += len(refusal.paths)
    if not found.volumes:
        shown = "; ".join(f"{reason} ({count} files)" for reason, count in reasons.most_common(4))
        raise UnreadableImageError(f"no volume: {shown}", path)
    count = len(found.volumes)
    lines = [f"{path}: {count} volume{'s' * (count > 1)}"]
    for number, opened in enumerate(found.volumes[:_SHOWN]):
        if count > 1:
            lines += ["", f"volume {number}"]
        lines += [f"{name:<16} {text}" for name, text in (_facts(opened) | _values(opened)).items()]
    if count > _SHOWN:
        lines += ["", f"... and {count - _SHOWN} more"]
    if reasons:
        lines += ["", *(f"left out {files} files: {reason}" for reason, files in reasons.most_common(12))]
    return "\n".join(lines)


def _facts(opened: OpenVolume) -> dict[str, str]:
    facts = opened.facts
    bare = Volume(np.empty(0), opened.affine)
    size = sum(path.stat().st_size for path in opened.paths)
    files = "1 file" if len(opened.paths) == 1 else f"{len(opened.paths)} files"
    rows = {
        "kind": f"{_NAMED[facts['kind']]}, {files}, {size / 1e6:.1f} MB",
        "size": " x ".join(map(str, opened.shape)) + " voxels (D x H x W)",
        "spacing": " x ".join(f"{mm:.4g}" for mm in bare.spacing_mm) + " mm",
        "orientation": bare.orientation if facts["oriented"] else "not stated",
        "modality": facts["modality"] or "not stated",
    }
    rows |= {name.replace("_", " "): facts[name] for name in ("body_part", "unit") if facts.get(name)}
    for name, key, unit in (
        ("slice thickness", "slice_thickness_mm", "mm"),
        ("gantry tilt", "tilt_degrees", "degrees"),
    ):
        if facts.get(key):
            rows[name] = f"{facts[key]:.4g} {unit}"
    if facts["split_by"]:
        rows["told apart by"] = ", ".join(f"{name} {value}" for name, value in facts["split_by"].items())
    return rows


def _values(opened: OpenVolume) -> dict[str, str]:
    try:
        volume = opened.read()
    except UnreadableImageError as error:
        return {"values": f"cannot be read: {error.reason}"}
    low, middle, high = np.percentile(volume.array, (1, 50, 99))
    rows = {
        "values": f"{volume.array.min():g} to {volume.array.max():g}, mean {volume.array.mean(dtype=np.float64):g}",
        "percentiles": f"1 % {low:g}, 50 % {middle:g}, 99 % {high:g}",
    }
    if volume.facts["nonfinite_fraction"]:
        rows["not finite"] = f"{volume.facts['nonfinite_fraction']:.2%} of the voxels"
    if volume.facts.get("interpolated_slices"):
        rows["interpolated"] = f"{volume.facts['interpolated_slices']} slices"
    return rows
