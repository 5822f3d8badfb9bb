# SPDX-License-Identifier: Apache-2.0
"""Write small DICOM series with a known place in the patient."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from synthetic_dicom import write_dicom

CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
ORIGIN = (-20.0, -30.0, 40.0)
SPACING = (1.5, 0.75)  # between rows, between columns
STEP_MM = 2.5
SHAPE = (8, 16, 12)


def normal_of(orientation) -> np.ndarray:
    return np.cross(orientation[:3], orientation[3:])


def oblique(*angles_degrees: float) -> tuple[float, ...]:
    """Axes of a slice turned about x and then about z."""
    a, b = np.radians(angles_degrees)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    turn = about_z @ about_x
    return (*turn[:, 0], *turn[:, 1])


def random_voxels(shape=SHAPE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2000, shape).astype(np.int16)


def slice_elements(series: str, number: int, position, orientation=AXIAL, **elements) -> dict:
    """Elements of one CT slice; HU = stored - 1000."""
    return {
        "SOPClassUID": CT,
        "SeriesInstanceUID": series,
        "StudyInstanceUID": "1.2.3",
        "Modality": "CT",
        "ImagePositionPatient": [float(value) for value in position],
        "ImageOrientationPatient": [float(value) for value in orientation],
        "PixelSpacing": list(SPACING),
        "SliceThickness": STEP_MM,
        "InstanceNumber": number + 1,
        "RescaleSlope": 1,
        "RescaleIntercept": -1000,
        **elements,
    }


def write_series(
    folder: Path,
    voxels: np.ndarray,
    *,
    orientation=AXIAL,
    step=None,
    origin=ORIGIN,
    series: str | None = None,
    prefix: str = "",
    first_number: int = 0,
    each: Callable[[int], dict] | None = None,
    **elements,
) -> list[Path]:
    """Write (slices, rows, columns) stored values as one CT series.

    ``step`` is the vector from slice to slice in mm, by default along the normal; ``each(k)`` gives more elements of
    slice k.
    """
    series = series or generate_uid()
    step = STEP_MM * normal_of(orientation) if step is None else np.asarray(step)
    paths = []
    for number, pixels in enumerate(voxels):
        position = np.asarray(origin) + number * step
        own = slice_elements(series, first_number + number, position, orientation, **elements)
        path = folder / f"{prefix}{number:03d}.dcm"
        paths.append(write_dicom(path, pixels, **own | (each(number) if each else {})))
    return paths


def write_repeats(folder, each, repeats=3, **elements):
    """Three volumes at the same positions, written slice by slice in turn."""
    voxels = [random_voxels(seed=seed) for seed in range(repeats)]
    paths = []
    for repeat, stored in enumerate(voxels):
        paths += write_series(
            folder,
            stored,
            series="1.2.3.4",
            prefix=f"{'cab'[repeat % 3]}{repeat}",
            each=lambda number, repeat=repeat: {"InstanceNumber": number * 10 + repeat} | each(repeat, number),
            **elements,
        )
    return paths, [stored.astype(np.float32) - 1000 for stored in voxels]


def expected_affine(orientation=AXIAL, origin=ORIGIN, step_mm: float = STEP_MM) -> np.ndarray:
    """RAS affine of axes (slice, row, column), straight from the definition of ImagePositionPatient."""
    lps = np.eye(4)
    lps[:3, 0] = step_mm * normal_of(orientation)
    lps[:3, 1] = SPACING[0] * np.asarray(orientation[3:])
    lps[:3, 2] = SPACING[1] * np.asarray(orientation[:3])
    lps[:3, 3] = origin
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps


def item(**elements) -> Dataset:
    data = Dataset()
    for name, value in elements.items():
        setattr(data, name, value)
    return data


def write_enhanced(path: Path, voxels: np.ndarray, positions, frame_groups=None, **elements) -> Path:
    """Write a multi-frame MR whose frames lie at ``positions``; ``frame_groups(k)`` adds groups to frame k."""
    frames = []
    for number, position in enumerate(positions):
        groups = {"PlanePositionSequence": [item(ImagePositionPatient=[float(value) for value in position])]}
        frames.append(item(**groups | (frame_groups(number) if frame_groups else {})))
    shared = item(
        PlaneOrientationSequence=[item(ImageOrientationPatient=list(AXIAL))],
        PixelMeasuresSequence=[item(PixelSpacing=list(SPACING), SliceThickness=STEP_MM)],
    )
    known = {"SOPClassUID": ENHANCED_MR, "Modality": "MR", "NumberOfFrames": len(voxels), "InstanceNumber": 1}
    groups = {"SharedFunctionalGroupsSequence": [shared], "PerFrameFunctionalGroupsSequence": frames}
    return write_dicom(path, voxels, **known | groups | elements)
