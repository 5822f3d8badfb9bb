# SPDX-License-Identifier: Apache-2.0
"""NIfTI, NRRD and MetaImage files to volumes: slices first, RAS millimetres, a fourth axis split into volumes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from monai_ssl.data.errors import UnreadableImageError
from monai_ssl.data.nifti_slices import BROKEN_NIFTI, open_nifti
from monai_ssl.data.volumes import LPS_TO_RAS, FoundVolumes, OpenVolume, Volume, check_size, fill_nonfinite

ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")

# xyzt_units (NIfTI-1, section "UNITS OF SPATIAL AND TEMPORAL DIMENSIONS") to mm; unknown units count as mm.
_MM_PER_UNIT = {"meter": 1000.0, "micron": 0.001}


def open_nifti_volumes(path: Path, keep_open: bool = False) -> FoundVolumes:
    """Read the header of a NIfTI file to its volumes.

    The affine is the sform, else the qform (the file's own codes decide); without both, ``facts["oriented"]`` is False
    and only the spacing means anything.

    Args:
        path: the file.
        keep_open: see ``open_nifti``; for reading all entries of a fourth axis in turn.

    Raises:
        UnreadableImageError: if the file is broken, has no three axes of at least two voxels, more than four axes, or
            is larger than 4 GiB.
    """
    image, _ = open_nifti(path, keep_open)
    count = _entries(image.shape, path)
    affine = np.array(image.affine, dtype=np.float64)
    affine[:3] *= _MM_PER_UNIT.get(_length_unit(image), 1.0)
    oriented = bool(int(image.header["qform_code"]) or int(image.header["sform_code"]))
    facts = {"kind": "nifti", "oriented": oriented, "slices": int(image.shape[2])}
    shape = tuple(int(side) for side in image.shape[2::-1])
    return _volumes(path, count, shape, partial(_nifti_entry, image), _slices_first(affine, path), facts)


def _length_unit(image: nib.Nifti1Image) -> str:
    try:
        return image.header.get_xyzt_units()[0]
    except KeyError:
        return "unknown"


def _nifti_entry(image: nib.Nifti1Image, entry: int) -> np.ndarray:
    """One entry of the fourth axis as (D, H, W), with the header's scale and offset applied."""
    place = (slice(None),) * 3 + (entry,) * (len(image.shape) > 3) + (0,) * (len(image.shape) - 4)
    try:
        return np.asarray(image.dataobj[place], dtype=np.float32).T
    except BROKEN_NIFTI as error:
        raise UnreadableImageError("the NIfTI data is broken or cut off") from error


def open_itk_volumes(path: Path) -> FoundVolumes:
    """Read an NRRD or MetaImage file with the optional package itk.

    Raises:
        UnreadableImageError: if itk is not installed, the file is broken or no volume of grey values.
    """
    try:
        import itk
    except ImportError:
        reason = f'{path.suffix} files need the package itk: pip install "monai-ssl[itk]"'
        raise UnreadableImageError(reason, path) from None
    try:
        image = itk.imread(str(path))
        array = np.asarray(itk.array_from_image(image))
        components = int(image.GetNumberOfComponentsPerPixel())
        dimension = int(image.GetImageDimension())
        origin, spacing = np.asarray(image.GetOrigin()), np.asarray(image.GetSpacing())
        direction = itk.array_from_matrix(image.GetDirection())
    except Exception:
        # itk wraps whatever its C++ readers throw; the texts quote the machine's paths and the header.
        raise UnreadableImageError("itk cannot read it: the header or the data is broken", path) from None
    if components != 1:
        raise UnreadableImageError(f"{components} values per voxel; a volume has one", path)
    count = _entries(array.shape[::-1], path)
    affine = np.eye(4)
    if dimension >= 3:
        affine[:3, :3] = np.asarray(direction)[:3, :3] * spacing[:3]
        affine[:3, 3] = origin[:3]
    array = array.reshape(count, *array.shape[-3:])
    facts = {"kind": "itk", "oriented": True, "slices": int(array.shape[1])}
    affine = _slices_first(LPS_TO_RAS @ affine, path)
    return _volumes(path, count, array.shape[1:], partial(_itk_entry, array), affine, facts)


def _itk_entry(array: np.ndarray, entry: int) -> np.ndarray:
    return array[entry].astype(np.float32)


def _entries(shape: tuple[int, ...], path: Path) -> int:
    """Entries of the fourth axis; further axes must be of length 1. Spatial axes come first."""
    if len(shape) < 3 or min(shape[:3]) < 2:
        raise UnreadableImageError("not a volume: fewer than two voxels along an axis", path)
    if any(side > 1 for side in shape[4:]):
        raise UnreadableImageError(f"{len(shape)} axes; volumes have three, or four with a series of volumes", path)
    try:
        check_size(shape[:3])
    except UnreadableImageError as error:
        raise UnreadableImageError(error.reason, path) from None
    return int(shape[3]) if len(shape) > 3 else 1


def _slices_first(affine: np.ndarray, path: Path) -> np.ndarray:
    """Turn an affine of axes (W, H, D) into that of (D, H, W)."""
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise UnreadableImageError("the affine is broken: it maps the volume to a plane or to nothing", path)
    return affine[:, [2, 1, 0, 3]]


def _volumes(
    path: Path, count: int, shape: tuple[int, int, int], entry: Any, affine: np.ndarray, facts: dict
) -> FoundVolumes:
    """One volume for each entry; ``entry(k)`` gives its values (D, H, W)."""
    volumes = []
    for number in range(count):
        own = {"modality": None, "body_part": None, "unit": None, **facts}
        own["split_by"] = {"fourth_axis": number} if count > 1 else {}
        volumes.append(OpenVolume((path,), own, shape, affine, partial(_load, entry, number, affine, own)))
    return FoundVolumes(volumes, [])


def _load(entry: Any, number: int, affine: np.ndarray, facts: dict) -> Volume:
    array, replaced = fill_nonfinite(np.array(entry(number), dtype=np.float32, order="C"))
    return Volume(array, affine, None, facts | {"nonfinite_fraction": replaced})
