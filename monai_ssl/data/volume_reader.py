# SPDX-License-Identifier: Apache-2.0
"""Volumes from DICOM series, NIfTI, NRRD and MetaImage, read one way: slices first, physical values, RAS affine."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import PathLike
from monai.data.image_reader import ImageReader
from monai.utils import MetaKeys, SpaceKeys, TraceKeys

from monai_ssl.data.errors import UnreadableImageError
from monai_ssl.data.readers import sniff_kind
from monai_ssl.data.series import open_series
from monai_ssl.data.volume_files import ITK_SUFFIXES, open_itk_volumes, open_nifti_volumes
from monai_ssl.data.volumes import FoundVolumes, OpenVolume, Refusal, Volume, check_orientation

logger = logging.getLogger(__name__)


def open_volumes(path: PathLike | Sequence[PathLike], *, min_slices: int = 3, uneven: str = "refuse") -> FoundVolumes:
    """Find the volumes of a folder of DICOM files, a list of them, or one file, by their headers.

    Args:
        path: a folder, searched with its subfolders for DICOM files of any name (hidden ones are skipped); a list of
            DICOM files; or one multi-frame DICOM, NIfTI, NRRD or MetaImage file. Each entry of a fourth axis is a
            volume of its own.
        min_slices: fewest slices of a DICOM volume; at least 2.
        uneven: what to do with a DICOM stack where slices are missing or unevenly spaced: ``"refuse"``, or
            ``"resample"`` to interpolate them linearly along the slice axis.

    Returns:
        The volumes, not decoded yet, and the files that are in none of them with their reasons.

    Raises:
        UnreadableImageError: if a single file is no volume.
        FileNotFoundError: if there is no such file or folder.
        ValueError: if an argument is out of range.
    """
    if not isinstance(path, (str, Path)):
        return open_series(path, min_slices=min_slices, uneven=uneven)
    path = Path(path)
    if path.is_dir():
        return _open_folder(path, min_slices, uneven)
    if path.suffix.lower() in ITK_SUFFIXES and path.is_file():
        return open_itk_volumes(path)
    kind = sniff_kind(path)
    if kind == "nifti":
        return open_nifti_volumes(path)
    if kind == "dicom":
        return open_series([path], min_slices=min_slices, uneven=uneven)
    raise UnreadableImageError("not a volume: looked for DICOM, NIfTI, NRRD and MetaImage", path)


def open_volume(
    path: PathLike | Sequence[PathLike], *, index: int | None = None, min_slices: int = 3, uneven: str = "refuse"
) -> OpenVolume:
    """Find the one volume of a path, or the one that ``index`` names, by the headers.

    Args:
        path, min_slices, uneven: see ``open_volumes``.
        index: place in ``open_volumes(path).volumes``; None demands that there is one volume.

    Returns:
        The volume, not decoded yet. Files that are in no volume are named in a log warning, by reason and count.

    Raises:
        UnreadableImageError: if there is no volume, or several and no ``index``.
        FileNotFoundError: if there is no such file or folder.
        ValueError: if an argument is out of range.
    """
    found = open_volumes(path, min_slices=min_slices, uneven=uneven)
    shown = path if isinstance(path, (str, Path)) else Path(path[0]).parent if len(path) else None
    if not found.volumes:
        culprits = {refusal.culprit for refusal in found.refused}
        blamed = culprits.pop() if len(culprits) == 1 else None
        raise UnreadableImageError(f"no volume: {_reasons(found.refused)}", blamed or shown)
    if found.refused:
        logger.warning("%s: left out: %s", shown, _reasons(found.refused))
    count = len(found.volumes)
    if index is None and count > 1:
        raise UnreadableImageError(
            f"{count} volumes, {_parted_by(found.volumes)}; choose one by index=0 to {count - 1}, or take all from "
            "open_volumes",
            shown,
        )
    if not 0 <= (index or 0) < count:
        raise UnreadableImageError(f"no volume {index}: it holds {count}", shown)
    return found.volumes[index or 0]


def read_volume(
    path: PathLike | Sequence[PathLike],
    *,
    index: int | None = None,
    orientation: str | None = None,
    min_slices: int = 3,
    uneven: str = "refuse",
) -> Volume:
    """Read one volume with its place in the patient, the same from DICOM, NIfTI, NRRD and MetaImage.

    The values are physical: DICOM's modality LUT or RescaleSlope and RescaleIntercept (PS3.3 section C.11.1) of each
    slice, NIfTI's scl_slope and scl_inter. Nothing is windowed, inverted, clipped or rounded; padding keeps its value;
    voxels that are not finite get the smallest finite value. The slices of a tilted gantry are sheared to a rectangular
    grid, linearly interpolated; outside of them is -1000 HU in CT, else the smallest value.

    Args:
        path: a folder or list of DICOM files, or one file (see ``open_volumes``).
        index: which volume, if there are several: several series, several volumes in a series (see
            ``monai_ssl.data.series`` for the rules), or the entries of a fourth axis. None demands that there is one.
        orientation: where the array axes shall run to, for instance ``"RAS"`` (see ``Volume.to_orientation``). None
            keeps the order of the slices, rows and columns.
        min_slices: fewest slices of a DICOM volume; at least 2.
        uneven: ``"refuse"`` or ``"resample"`` missing and unevenly spaced DICOM slices.

    Returns:
        A ``Volume``: float32 (D, H, W), affine in RAS mm, and these facts: kind (``"dicom"``, ``"nifti"`` or
        ``"itk"``), modality, body_part, unit (``"HU"``, a term of PET's Units, or None if the file does not say),
        oriented (False if only the spacing is known), slices, split_by (what tells it from the other volumes),
        nonfinite_fraction; of DICOM also copies_dropped, slice_thickness_mm, tilt_degrees and interpolated_slices.

    Raises:
        UnreadableImageError: if there is no usable volume, or several and no ``index``; ``reason`` says why.
        FileNotFoundError: if there is no such file or folder.
        ValueError: if an argument is out of range.
    """
    if orientation is not None:
        check_orientation(orientation)
    return _read(open_volume(path, index=index, min_slices=min_slices, uneven=uneven), orientation)


def _read(opened: OpenVolume, orientation: str | None) -> Volume:
    try:
        volume = opened.read()
        return volume if orientation is None else volume.to_orientation(orientation)
    except UnreadableImageError as error:
        first = opened.paths[0]
        blamed = error.path or (first if len(opened.paths) == 1 else first.parent)
        raise UnreadableImageError(error.reason, blamed) from error.__cause__
    except MemoryError as error:
        raise UnreadableImageError("not enough memory to decode it", opened.paths[0]) from error


def _open_folder(folder: Path, min_slices: int, uneven: str) -> FoundVolumes:
    """Volumes of the DICOM files below a folder; other images are listed as refused, other files are passed over."""
    slices, refused = [], []
    for path in sorted(folder.rglob("*")):
        if any(part.startswith(".") for part in path.relative_to(folder).parts) or not path.is_file():
            continue
        try:
            kind = sniff_kind(path)
            other = kind != "dicom" and (kind or path.suffix.lower() in ITK_SUFFIXES)
        except UnreadableImageError as error:
            refused.append(Refusal((path,), error.reason, path))
            continue
        if other:
            refused.append(Refusal((path,), "not a DICOM file: in a folder only DICOM makes volumes", path))
        elif kind == "dicom":
            slices.append(path)
    found = open_series(slices, min_slices=min_slices, uneven=uneven)
    return FoundVolumes(found.volumes, refused + found.refused)


def _reasons(refused: list[Refusal]) -> str:
    """Reasons with the number of files, the most frequent first."""
    files = Counter()
    for refusal in refused:
        files[refusal.reason] += len(refusal.paths)
    if not files:
        return "no DICOM file found"
    shown = [f"{reason} ({count} file{'s' * (count > 1)})" for reason, count in files.most_common(6)]
    return "; ".join(shown + ["..."] * (len(files) > 6))


def _parted_by(volumes: list[OpenVolume]) -> str:
    """Say what tells volumes apart."""
    names = sorted({name for volume in volumes for name in volume.facts["split_by"]})
    return f"parted by {', '.join(names)}" if names else "of several series or patients"


class VolumeReader(ImageReader):
    """MONAI image reader for volumes: ``LoadImage(reader=VolumeReader())``.

    The array is (D, H, W), float32, slices first, with the affine of these axes in RAS; MONAI's other readers give
    (W, H, D). Both are turned alike by MONAI's ``Orientation``. A list of DICOM files is one volume; several folders or
    other files are stacked as channels. Headers are read in ``read`` and voxels in ``get_data``; both errors come out
    of ``get_data``, because ``LoadImage`` would answer an error of ``read`` by silently trying other readers.

    Args:
        index, orientation, min_slices, uneven: see ``read_volume``.
    """

    def __init__(
        self,
        index: int | None = None,
        orientation: str | None = None,
        min_slices: int = 3,
        uneven: str = "refuse",
    ):
        super().__init__()
        if orientation is not None:
            check_orientation(orientation)
        self.orientation = orientation
        self.options = {"index": index, "min_slices": min_slices, "uneven": uneven}

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Accept folders, DICOM and NIfTI by content, and NRRD and MetaImage by name."""
        names = [filename] if isinstance(filename, (str, Path)) else list(filename)
        return all(Path(name).is_dir() or _claims_volume(name) for name in names)

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> list[OpenVolume | Exception]:
        """Open one or several volumes.

        Returns:
            One entry a volume; one that cannot be read is its error, which ``get_data`` raises.
        """
        names = [data] if isinstance(data, (str, Path)) else list(data)
        if len(names) > 1 and not any(Path(name).is_dir() or _claims_volume(name, ("nifti",)) for name in names):
            names = [names]
        opened: list[OpenVolume | Exception] = []
        for name in names:
            try:
                opened.append(open_volume(name, **self.options))
            except (UnreadableImageError, OSError) as error:
                opened.append(error)
        return opened

    def get_data(self, img: Sequence[OpenVolume | Exception]) -> tuple[np.ndarray, dict]:
        """Decode what ``read`` opened.

        Returns:
            float32 (D, H, W), or (volumes, D, H, W) for several, and the facts of the first one with MONAI's
            ``affine``, ``spatial_shape``, ``space`` and ``original_channel_dim``.

        Raises:
            UnreadableImageError: if a volume is not usable.
            ValueError: if several volumes differ in size or place.
        """
        volumes = []
        for item in img:
            if isinstance(item, Exception):
                raise item
            volumes.append(_read(item, self.orientation))
        first = volumes[0]
        for other in volumes[1:]:
            if other.array.shape != first.array.shape or not np.allclose(other.affine, first.affine, atol=1e-2):
                raise ValueError(
                    "volumes of different size or place cannot be stacked as channels; resample them first"
                )
        meta = {key: str(TraceKeys.NONE) if value is None else value for key, value in first.facts.items()}
        meta["split_by"] = ", ".join(f"{name}={value}" for name, value in first.facts["split_by"].items())
        meta[MetaKeys.AFFINE] = first.affine.copy()
        meta[MetaKeys.ORIGINAL_AFFINE] = first.affine.copy()
        meta[MetaKeys.SPACE] = SpaceKeys.RAS
        meta[MetaKeys.SPATIAL_SHAPE] = np.asarray(first.array.shape)
        meta[MetaKeys.ORIGINAL_CHANNEL_DIM] = float("nan") if len(volumes) == 1 else 0
        return (first.array if len(volumes) == 1 else np.stack([volume.array for volume in volumes])), meta


def _claims_volume(path: PathLike, kinds: tuple[str, ...] = ("dicom", "nifti")) -> bool:
    """Tell whether a file is of one of ``kinds`` by its bytes, or NRRD or MetaImage by its name."""
    if Path(path).suffix.lower() in ITK_SUFFIXES:
        return True
    try:
        return sniff_kind(path) in kinds
    except (OSError, UnreadableImageError):
        return False
