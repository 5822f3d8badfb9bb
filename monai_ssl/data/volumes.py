# SPDX-License-Identifier: Apache-2.0
"""A volume: physical values with their place in the patient, and the axes turned without resampling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import nibabel as nib
import numpy as np

from monai_ssl.data.errors import UnreadableImageError

MAX_VOLUME_BYTES = 4 << 30  # of the float32 array: 1024 x 1024 x 1024 voxels
AIR_HU = -1000.0  # by the definition of the Hounsfield unit
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM's and ITK's patient axes to those of NIfTI and MONAI

# Patient axes of NIfTI and MONAI (RAS): the letter names the end that an array axis runs towards.
_AXIS_ENDS = ("LR", "PA", "IS")


@dataclass(frozen=True, eq=False)
class Volume:
    """One volume in physical units, with nothing that names a patient.

    Args:
        array: float32 (D, H, W), finite; slices first. CT in HU where ``facts["unit"]`` is ``"HU"``.
        affine: float64 (4, 4), from voxel indices in the array's own axis order, (d, h, w, 1), to millimetres along
            the patient's right, anterior and superior (RAS), at voxel centres.
        modality: term of DICOM's Modality (0008,0060), or None if the file does not say.
        facts: closed vocabularies and numbers only (see ``read_volume``).
    """

    array: np.ndarray
    affine: np.ndarray
    modality: str | None = None
    facts: dict = field(default_factory=dict)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxels along each array axis, (D, H, W), in mm."""
        return tuple(float(length) for length in np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def orientation(self) -> str:
        """Ends of the patient that the array axes run towards, for instance ``"SPL"`` for axial slices."""
        return "".join(nib.aff2axcodes(self.affine))

    def to_orientation(self, codes: str) -> Volume:
        """Permute and flip the array axes, and the affine with them; nothing is resampled.

        Args:
            codes: where the three array axes shall run to, the nearest ones for an oblique volume: one letter of L / R,
                one of P / A and one of I / S, in any order. ``"RAS"`` is MONAI's usual one, ``"SPL"`` that of axial
                DICOM slices.

        Raises:
            ValueError: if ``codes`` is no orientation.
            UnreadableImageError: if the file does not state its orientation.

        >>> volume = Volume(np.arange(6, dtype=np.float32).reshape(1, 2, 3), np.diag([4.0, 2.0, 1.0, 1.0]))
        >>> turned = volume.to_orientation("SPR")
        >>> turned.array.shape, turned.spacing_mm, turned.orientation
        ((3, 2, 1), (1.0, 2.0, 4.0), 'SPR')
        """
        check_orientation(codes)
        if not self.facts.get("oriented", True):
            raise UnreadableImageError(
                "the file does not state its orientation, so its axes cannot be turned to another"
            )
        wanted = nib.orientations.axcodes2ornt(codes.upper())
        turn = nib.orientations.ornt_transform(nib.io_orientation(self.affine), wanted)
        array = np.ascontiguousarray(nib.apply_orientation(self.array, turn))
        affine = self.affine @ nib.orientations.inv_ornt_aff(turn, self.array.shape)
        return replace(self, array=array, affine=affine)


@dataclass(frozen=True)
class OpenVolume:
    """A volume whose header is read and whose voxels are not decoded yet.

    Args:
        paths: the files it comes from.
        facts: see ``read_volume``.
        shape: (D, H, W) of the array that ``read`` will give.
        affine: the affine that it will have.
        load: decodes it; use ``read``.
    """

    paths: tuple[Path, ...]
    facts: dict
    shape: tuple[int, int, int]
    affine: np.ndarray = field(repr=False)
    load: Callable[[], Volume] = field(repr=False)

    def read(self) -> Volume:
        """Decode the volume.

        Raises:
            UnreadableImageError: if the voxels are broken.
        """
        return self.load()


@dataclass(frozen=True)
class Refusal:
    """Files that are in no volume.

    Args:
        paths: the files.
        reason: why, in our own words: never header text, names, dates or identifiers.
        culprit: the one file that is to blame, or None.
    """

    paths: tuple[Path, ...]
    reason: str
    culprit: Path | None = None


@dataclass(frozen=True)
class FoundVolumes:
    """What a file, a folder or a list of files holds.

    Args:
        volumes: the volumes, in a fixed order.
        refused: every file that looked like an image and is in none of them.
    """

    volumes: list[OpenVolume]
    refused: list[Refusal]


def check_orientation(codes: str) -> None:
    """Raise unless ``codes`` has one letter for each patient axis.

    Raises:
        ValueError: ``"orientation is 'RAX'; use one letter of L/R, one of P/A and one of I/S, such as 'RAS'"``.
    """
    letters = codes.upper() if isinstance(codes, str) else ""
    if len(letters) != 3 or not all(any(end in letters for end in ends) for ends in _AXIS_ENDS):
        raise ValueError(
            f"orientation is {codes!r}; use one letter of L/R, one of P/A and one of I/S, such as 'RAS' or 'SPL'"
        )


def check_size(shape: tuple[int, ...]) -> None:
    """Refuse a volume that is larger than ``MAX_VOLUME_BYTES``, before anything is allocated."""
    if 4 * int(np.prod([int(side) for side in shape], dtype=object)) > MAX_VOLUME_BYTES:
        size = " x ".join(str(side) for side in shape)
        raise UnreadableImageError(f"a volume of {size} voxels exceeds {MAX_VOLUME_BYTES >> 30} GiB as float32")


def fill_nonfinite(array: np.ndarray) -> tuple[np.ndarray, float]:
    """Replace NaN and infinity by the smallest finite value, in place.

    Returns:
        The array, and the fraction of its voxels that was replaced.

    Raises:
        UnreadableImageError: if no voxel is finite.
    """
    bad = ~np.isfinite(array)
    if not bad.any():
        return array, 0.0
    if bad.all():
        raise UnreadableImageError("no finite voxel value")
    array[bad] = array[~bad].min()
    return array, float(bad.mean())
