# SPDX-License-Identifier: Apache-2.0
"""Slices to one volume: even spacing, missing slices, gantry tilt, the affine, and the decoding.

The geometry is that of the Image Plane module (PS3.3 section C.7.6.2): ImagePositionPatient, ImageOrientationPatient
and PixelSpacing. InstanceNumber, SliceLocation, SpacingBetweenSlices and GantryDetectorTilt are not asked: where they
contradict the positions, the positions are right.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from monai_ssl.data.dicom import quiet_pydicom, read_dicom
from monai_ssl.data.dicom_pixels import decode_frame
from monai_ssl.data.errors import UnreadableImageError
from monai_ssl.data.grey_levels import modality_values
from monai_ssl.data.slices import Slice
from monai_ssl.data.volumes import AIR_HU, LPS_TO_RAS, Volume, check_size, fill_nonfinite

UNEVEN_RULES = ("refuse", "resample")

_EVEN_TOLERANCE = 0.1  # of the spacing, how far a slice may lie off the even grid: positions are often rounded
_SHEAR_PIXELS = 0.5  # drift within the plane from the first slice to the last that is left alone: half a voxel
_STRAIGHT_PIXELS = 1.0  # how far a slice may lie off the straight line of a tilted stack


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices of one volume in order, and where they go.

    Args:
        slices: along the slices' normal.
        places: (n,) place of each slice on the even grid, in grid steps; the first is 0.
        step_mm: distance of the grid's slices.
        drift: (n, 2) how far each slice lies off the normal through the first one, in rows and columns; zero along an
            axis that is not sheared.
        tilt_degrees: angle between the line of the slices and their normal; 0 if nothing is sheared.
    """

    slices: tuple[Slice, ...]
    places: np.ndarray
    step_mm: float
    drift: np.ndarray
    tilt_degrees: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slices, rows and columns of the volume; a shear enlarges the plane."""
        rows, columns = (
            lines + _growth(drift) for lines, drift in zip(self.slices[0].shape, self.drift.T, strict=True)
        )
        return int(np.floor(self.places[-1] + 1e-6)) + 1, rows, columns

    @property
    def affine(self) -> np.ndarray:
        """Affine (4, 4) from (slice, row, column) to RAS mm; equation C.7.6.2.1-1 with the slices' step added."""
        first = self.slices[0]
        along_row, down_column = first.orientation
        in_plane = np.stack([down_column * first.spacing[0], along_row * first.spacing[1]], axis=1)  # (3, 2)
        affine = np.eye(4)
        affine[:3, 0] = first.normal * self.step_mm
        affine[:3, 1:3] = in_plane
        affine[:3, 3] = first.position + in_plane @ np.floor(self.drift.min(axis=0))  # where a shear has its corner
        return LPS_TO_RAS @ affine


def lay_out(slices: list[Slice], uneven: str = "refuse") -> Stack:
    """Order the slices of one volume along their normal and check that they make a grid.

    Args:
        slices: at least two, of one size, spacing and orientation, no two at the same position.
        uneven: ``"refuse"``, or ``"resample"`` to interpolate missing and unevenly spaced slices.

    Raises:
        UnreadableImageError: if slices are missing or unevenly spaced (and ``uneven`` is ``"refuse"``), more are
            missing than present, the slices do not lie on a straight line, or the volume is larger than 4 GiB.
    """
    normal = slices[0].normal
    slices = sorted(slices, key=lambda item: float(item.position @ normal))
    heights = np.array([item.position @ normal for item in slices])
    places, step = _even_places(heights, uneven)
    drift, tilt = _drift(slices, heights)
    stack = Stack(tuple(slices), places, step, drift, tilt)
    check_size(stack.shape)
    return stack


def _even_places(heights: np.ndarray, uneven: str) -> tuple[np.ndarray, float]:
    """Place of each slice on an even grid, and the grid's step in mm; ``heights`` rise."""
    gaps = np.diff(heights)
    step = float(np.median(gaps))
    places = np.concatenate([[0.0], np.cumsum(np.rint(gaps / step))])
    fitted = (heights[-1] - heights[0]) / max(places[-1], 1.0)
    off_grid = np.abs(heights - heights[0] - places * fitted).max() > _EVEN_TOLERANCE * fitted
    off_grid |= (np.diff(places) < 1).any()
    if off_grid:
        if uneven == "refuse":
            raise UnreadableImageError(
                f"uneven slice spacing, from {gaps.min():.2f} to {gaps.max():.2f} mm; "
                "uneven='resample' interpolates even slices"
            )
        places, fitted = (heights - heights[0]) / step, step
    missing = round(float(places[-1])) + 1 - len(heights)
    if missing > 0 and not off_grid and uneven == "refuse":
        after = int(np.argmax(np.diff(places))) + 1
        raise UnreadableImageError(
            f"{missing} of {len(heights) + missing} slices missing: slices {after} and {after + 1} are "
            f"{gaps.max():.2f} mm apart, the others {fitted:.2f} mm; uneven='resample' interpolates them"
        )
    if missing > len(heights):
        raise UnreadableImageError(f"more slices are missing ({missing}) than present ({len(heights)})")
    return places, float(fitted)


def _drift(slices: list[Slice], heights: np.ndarray) -> tuple[np.ndarray, float]:
    """Drift of each slice within the plane, in (rows, columns), and the tilt in degrees."""
    first = slices[0]
    moved = np.stack([item.position - first.position for item in slices])
    drift = moved @ first.orientation[::-1].T / first.spacing  # (n, 2): down the columns, along the rows
    sheared = np.ptp(drift, axis=0) > _SHEAR_PIXELS
    drift = np.where(sheared, np.round(drift, 3), 0.0)
    if not sheared.any():
        return drift, 0.0
    slope, start = np.polyfit(heights, drift, 1)
    if np.abs(drift - heights[:, None] * slope - start).max() > _STRAIGHT_PIXELS:
        raise UnreadableImageError("the slices do not lie behind each other on a straight line")
    return drift, float(np.degrees(np.arctan(np.linalg.norm(slope * first.spacing))))


def read_stack(stack: Stack, modality: str | None, facts: dict) -> Volume:
    """Decode the slices of a stack to a volume: rescale of each frame, tilt, missing slices, affine.

    Args:
        stack: what ``lay_out`` gave.
        modality: term of Modality (0008,0060), or None.
        facts: facts of the volume; what the decoding finds is added.

    Raises:
        UnreadableImageError: if a slice cannot be decoded, naming its file, or no voxel is finite.
    """
    array, replaced = fill_nonfinite(_decode(stack.slices))
    for axis in (0, 1):
        if stack.drift[:, axis].any():
            outside = AIR_HU if facts.get("unit") == "HU" else float(array.min())
            array = _shear(array, stack.drift[:, axis], axis + 1, outside)
    array, interpolated = _fill_grid(array, stack.places)
    facts = facts | {"interpolated_slices": interpolated, "nonfinite_fraction": replaced}
    return Volume(array, stack.affine, modality, facts)


def _decode(slices: tuple[Slice, ...]) -> np.ndarray:
    """Physical values of all slices, float32 (n, rows, columns); each file is read once."""
    array = np.empty((len(slices), *slices[0].shape), dtype=np.float32)
    by_file = sorted(range(len(slices)), key=lambda place: (str(slices[place].path), slices[place].frame))
    for path, places in groupby(by_file, key=lambda place: slices[place].path):
        with quiet_pydicom():
            _decode_file(path, [(place, slices[place].frame) for place in places], array)
    return array


def _decode_file(path: Path, frames: list[tuple[int, int]], array: np.ndarray) -> None:
    try:
        data = read_dicom(path)
        for place, frame in frames:
            pixels, _ = decode_frame(data, frame)
            if pixels.shape != array.shape[1:]:
                raise UnreadableImageError("the decoded frame has another size than the header says")
            array[place] = modality_values(pixels, data, frame)
    except UnreadableImageError as error:
        raise UnreadableImageError(error.reason, path) from None
    except MemoryError:
        raise UnreadableImageError("not enough memory to decode it", path) from None
    except OSError as error:
        raise UnreadableImageError(f"the file could not be read ({error.strerror or 'unknown reason'})", path) from None
    except Exception as error:
        # Headers are hostile: pydicom converts elements on access. The text may quote the header.
        raise UnreadableImageError(f"unexpected {type(error).__name__} while decoding", path) from None


def _shear(array: np.ndarray, drift: np.ndarray, axis: int, outside: float) -> np.ndarray:
    """Move slice k by ``drift[k]`` pixels along an axis of (n, rows, columns), linearly interpolated.

    The axis grows so that nothing is cut off; its first line is at the smallest drift, rounded down.
    """
    low = int(np.floor(drift.min()))
    shape = list(array.shape)
    lines, shape[axis] = shape[axis], shape[axis] + _growth(drift)
    result = np.empty(shape, dtype=np.float32)
    for plane, source, shift in zip(result, array, drift, strict=True):
        whole = int(np.floor(shift))
        target = [slice(None), slice(None)]
        target[axis - 1] = slice(whole - low, whole - low + lines)
        plane[...] = outside
        plane[tuple(target)] = source
        part = np.float32(shift - whole)
        if part:  # the last line is outside, so that nothing wraps round
            plane[...] = (1 - part) * plane + part * np.roll(plane, 1, axis - 1)
    return result


def _growth(drift: np.ndarray) -> int:
    """Lines that a shear adds, one of them for the interpolation; 0 without drift."""
    return int(np.floor(drift.max()) - np.floor(drift.min())) + 1 if drift.any() else 0


def _fill_grid(array: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, int]:
    """Slices at every whole place, linearly interpolated where there is none, and how many those are."""
    whole = np.arange(int(np.floor(places[-1] + 1e-6)) + 1)
    after = np.clip(np.searchsorted(places, whole), 1, len(places) - 1)
    weight = (whole - places[after - 1]) / (places[after] - places[after - 1])
    known = np.isclose(weight, 0, atol=1e-6) | np.isclose(weight, 1, atol=1e-6)
    if len(whole) == len(array) and known.all():
        return array, 0
    weight = np.where(known, np.rint(weight), weight).astype(np.float32)[:, None, None]
    return (1 - weight) * array[after - 1] + weight * array[after], int((~known).sum())
