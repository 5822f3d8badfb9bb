# SPDX-License-Identifier: Apache-2.0
"""A folder of tiny made-up CT volumes with label maps, for tests of segmentation and of bundles."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from monai_ssl.data import ImageStore, open_volume_store

SPLITS = ("train", "train", "train", "val", "test")
SPACING_MM = (1.0, 1.5, 2.0)  # of the file's own axes
# The file's axes: as they come, flipped, permuted, and turned by 10 degrees.
_TURN = np.array([[np.cos(0.17), -np.sin(0.17), 0], [np.sin(0.17), np.cos(0.17), 0], [0, 0, 1]])
DIRECTIONS = (np.eye(3), np.diag([-1, -1, 1]), np.eye(3)[:, [1, 2, 0]], _TURN @ np.diag([-1, 1, 1]))


def make_toy_volumes(
    folder: Path, num_patients: int = 10, shape: tuple[int, int, int] = (28, 24, 20), cube_side: int = 4
) -> Path:
    """One volume a patient: a grey body in air with a brighter ball (value 1) and, in every other, a cube (value 4).

    ``labels.csv``: file, label_map, patient_id, split, site, cube (0/1).
    """
    rng = np.random.default_rng(0)
    rows = []
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for patient in range(num_patients):
        array, labels = toy_volume(rng, shape, cube_side * (patient % 2 == 0))
        affine = np.eye(4)
        affine[:3, :3] = DIRECTIONS[patient % len(DIRECTIONS)] * SPACING_MM
        affine[:3, 3] = rng.uniform(-50, 50, 3)
        file, label_map = f"images/p{patient:02d}.nii.gz", f"labels/p{patient:02d}.nii.gz"
        write_nifti(folder / file, array, affine)
        write_nifti(folder / label_map, labels, affine)
        rows.append(
            {
                "file": file,
                "label_map": label_map,
                "patient_id": f"P{patient}",
                "split": SPLITS[patient % len(SPLITS)],
                "site": "A" if patient < num_patients // 2 else "B",
                "cube": int(patient % 2 == 0),
            }
        )
    with open(folder / "labels.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def toy_volume(rng: np.random.Generator, shape: tuple[int, int, int], cube_side: int) -> tuple[np.ndarray, np.ndarray]:
    """Hounsfield units int16 and labels uint8, in the file's order (i, j, k); a side of 0 makes no cube."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    middle = np.array(shape) / 2
    array = rng.normal(0, 20, shape) - 1000.0
    array[(((grid - middle) / (middle - 1)) ** 2).sum(-1) < 1] += 1040
    labels = np.zeros(shape, np.uint8)
    centre = middle + rng.uniform(-2, 2, 3)
    ball = (((grid - centre) * SPACING_MM) ** 2).sum(-1) < 6.0**2
    array[ball] += 200
    labels[ball] = 1
    if cube_side:
        box = tuple(slice(int(side * 0.62), int(side * 0.62) + cube_side) for side in shape)
        array[box] = 600 + rng.normal(0, 20, array[box].shape)
        labels[box] = 4
    return array.round().astype(np.int16), labels


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Write a file in mm with its sform and qform set, as scanners' converters do."""
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    nib.save(image, path)


def open_toy_volumes(folder: Path, cache: Path, **options) -> ImageStore:
    """Index and prepare the folder as CT."""
    return open_volume_store(folder, cache, modality="CT", policy="ct", num_workers=0, progress=False, **options)


def write_ct_series(
    folder: Path,
    hounsfield: np.ndarray,
    rows_and_columns: np.ndarray,
    spacing_mm: tuple[float, float, float],
    origin: tuple[float, float, float] = (-20.0, -30.0, 40.0),
) -> np.ndarray:
    """Write (slices, rows, columns) as one DICOM series and return its RAS affine of these axes.

    ``rows_and_columns``: (2, 3) unit vectors of the patient (LPS) along a row and along a column.
    """
    folder.mkdir(parents=True)
    along_row, along_column = rows_and_columns
    step = np.cross(along_row, along_column) * spacing_mm[0]
    series, study = generate_uid(), generate_uid()
    for number, pixels in enumerate(hounsfield):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.Modality, ds.InstanceNumber = series, study, "CT", number + 1
        ds.ImagePositionPatient = [round(float(value), 6) for value in np.array(origin) + number * step]
        ds.ImageOrientationPatient = [round(float(value), 9) for value in (*along_row, *along_column)]
        ds.PixelSpacing, ds.SliceThickness = list(spacing_mm[1:]), spacing_mm[0]
        ds.RescaleSlope, ds.RescaleIntercept = 1, -1000
        ds.Rows, ds.Columns = pixels.shape
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated = ds.BitsStored = 16
        ds.HighBit, ds.PixelRepresentation = 15, 0
        ds.PixelData = (pixels + 1000).astype("<u2").tobytes()
        ds.save_as(folder / f"{number:03d}.dcm", enforce_file_format=True)
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1], lps[:3, 2] = step, along_column * spacing_mm[1], along_row * spacing_mm[2]
    lps[:3, 3] = origin
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps
