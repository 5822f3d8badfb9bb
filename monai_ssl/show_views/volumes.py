# SPDX-License-Identifier: Apache-2.0
"""Which volumes a sheet shows: of a file, a folder, a DICOM series or a prepared store, as training gets them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from monai_ssl.data import (
    CTIntensity,
    ImageStore,
    ModalityIntensity,
    MRIntensity,
    OpenVolume,
    UnreadableImageError,
    find_volume_labels,
    open_volumes,
    read_volume_labels,
    volume_policy,
)
from monai_ssl.data.index import list_files
from monai_ssl.data.items import encode
from monai_ssl.data.readers import sniff_kind
from monai_ssl.data.store import store_in
from monai_ssl.data.volume_files import ITK_SUFFIXES
from monai_ssl.show_views.images import MOST_UNREADABLE, spread_over

ORIENTATION = "SPL"  # slices from the feet up, rows to the back, columns to the patient's left: as prepare turns them


@dataclass(frozen=True)
class ShownVolume:
    """A volume as training gets it.

    Attributes:
        name: where it comes from; for the terminal, not for the sheet.
        voxels: float32 (D, H, W) in [0, 1].
        spacing_mm: distance of voxels along each axis.
        orientation: ends of the patient that the axes run to, or None if the file does not say.
        modality: "CT", "MR", another term of DICOM, or None if it is not known.
        limits_hu: of CT, what 0 and 1 stand for; else None.
        caption: its kind and size.
    """

    name: str
    voxels: np.ndarray
    spacing_mm: tuple[float, float, float]
    orientation: str | None
    modality: str | None
    limits_hu: tuple[float, float] | None
    caption: str


def some_volumes(source: str | Path, count: int, modality: str | None = None) -> list[ShownVolume]:
    """Read some volumes of a file, a folder or a store, spread evenly over what is there.

    A folder is searched for DICOM series and for NIfTI, NRRD and MetaImage files; label maps that its table names are
    left out. Grey values are those of the policy "auto"; where the modality is not known, of that for MR.

    Args:
        source: a file with volumes, a folder, or a prepared store of volumes.
        count: number of volumes to take, 1 or more.
        modality: of files that do not say theirs, such as NIfTI: "CT" or "MR".

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: no volume can be read (the first reason is named), or an argument is out of its range.
    """
    source = Path(source)
    if count < 1:
        raise ValueError(f"num_images is {count}; use 1 or more")
    if modality not in (None, "CT", "MR"):
        raise ValueError(f"modality is {modality!r}; use CT or MR")
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder")
    store = store_in(source) if source.is_dir() else None
    if store is not None:
        return _from_store(store, count)
    found = _find(source)
    volumes: dict[int, ShownVolume] = {}
    reasons: list[str] = []
    for position in spread_over(len(found), count):
        if len(volumes) == count or len(reasons) == MOST_UNREADABLE:
            break
        try:
            volumes[position] = _shown(*found[position](), modality)
        except (UnreadableImageError, OSError) as error:
            reasons.append(str(error))
    if not volumes:
        raise ValueError(f"{source}: no volume to show; {reasons[0] if reasons else 'there is none'}")
    return [volumes[position] for position in sorted(volumes)]


def _find(source: Path) -> list[Callable[[], tuple[OpenVolume, str]]]:
    """What opens each volume, and its name; DICOM series have been sorted by then, files are not open yet."""
    if source.is_file():
        volumes = open_volumes(source).volumes
        return [lambda volume=volume: (volume, str(source)) for volume in volumes]
    series = open_volumes(source).volumes
    found = [lambda volume=volume: (volume, str(volume.paths[0].parent)) for volume in series]
    labels_file = find_volume_labels(source)
    maps = set()
    if labels_file is not None:
        table = read_volume_labels(labels_file, source)
        maps = set(table["label_map"].to_pylist()) if "label_map" in table.column_names else set()
    for name, _, _ in list_files(source)[0]:
        if name not in maps and _is_file_of_volumes(source / name):
            found.append(lambda path=source / name: (_first_of(path), str(path)))
    return found


def _is_file_of_volumes(path: Path) -> bool:
    try:
        return path.suffix.lower() in ITK_SUFFIXES or sniff_kind(path) == "nifti"
    except (UnreadableImageError, OSError):
        return False


def _first_of(path: Path) -> OpenVolume:
    return open_volumes(path).volumes[0]


def _shown(opened: OpenVolume, name: str, modality: str | None) -> ShownVolume:
    try:
        volume = opened.read()
        oriented = bool(volume.facts.get("oriented", True))
        volume = volume.to_orientation(ORIENTATION) if oriented else volume
        modality = volume.modality or modality
        policy = volume_policy("auto") if modality in ("CT", "MR") else MRIntensity()
        meta = {"modality": modality if modality in ("CT", "MR") else "MR", "unit": volume.facts.get("unit")}
        limits = policy.limits(volume.array, meta)
        stored, levels = encode(volume.array, limits)
    except UnreadableImageError as error:
        raise UnreadableImageError(error.reason, error.path or opened.paths[0]) from error
    kinds = {"dicom": "DICOM", "nifti": "NIfTI", "itk": opened.paths[0].suffix[1:].upper()}
    caption = _caption(modality, kinds[volume.facts["kind"]], volume.array.shape, volume.spacing_mm)
    return ShownVolume(
        name,
        np.divide(stored, levels, dtype=np.float32),
        volume.spacing_mm,
        ORIENTATION if oriented else None,
        modality,
        limits if modality == "CT" else None,
        caption,
    )


def _from_store(store: ImageStore, count: int) -> list[ShownVolume]:
    if not store.has_volumes:
        raise ValueError(f"{store.folder} holds images of two dimensions; show them with --preset radiograph")
    policy = store.policy
    volumes = []
    for row in sorted(spread_over(len(store), count, count)):
        modality = store.table["modality"][row].as_py()
        own = dict(policy.policies).get(modality) if isinstance(policy, ModalityIntensity) else policy
        spacing = store.spacing_mm(row)
        volumes.append(
            ShownVolume(
                f"{store.folder}, row {row}",
                store.read(row),
                spacing,
                "".join(nib.aff2axcodes(store.affine(row))),
                modality,
                tuple(store.table["store_limits"][row].as_py()) if isinstance(own, CTIntensity) else None,
                _caption(modality, "stored", store.shape(row), spacing),
            )
        )
    return volumes


def _caption(modality: str | None, kind: str, shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> str:
    sides, steps = (" x ".join(f"{value:.3g}" for value in values) for values in (shape, spacing_mm))
    return f"{modality or 'modality not known'}, {kind}\n{sides} voxels of\n{steps} mm"
