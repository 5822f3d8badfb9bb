# SPDX-License-Identifier: Apache-2.0
"""Embedded example volumes: a cohort of made-up bodies in CT (DICOM series) and MR (NIfTI) with label maps.

They let the way from volumes to a segmentation network run offline within minutes, and they are hard in the way real
ones are: organs vary in place, size and shape, liver and spleen are hardly told apart by their brightness, the gut
looks like either, and contrast, noise and grid differ from scan to scan. They are for trying software, not for learning
medicine. See ``phantom_body``, ``phantom_organs`` and ``phantom_scan`` for the pictures.
"""

from __future__ import annotations

import gzip
import io
import os
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np

from monai_ssl.data.example_dicom import ct_datasets
from monai_ssl.data.example_folder import ExampleFolder, check_num_patients, deal_splits, map_patients, write_table
from monai_ssl.data.files import write_whole
from monai_ssl.data.phantom_organs import ORGANS, Body, build_body
from monai_ssl.data.phantom_patient import random_stream
from monai_ssl.data.phantom_scan import Scan, scan_ct, scan_mr
from monai_ssl.data.volumes import LPS_TO_RAS

EXAMPLE_ORGANS = ORGANS
"""Names of the labels 1 to 4 of the label maps, in this order."""

_CONTENT_VERSION = 1  # raise it when the pictures change, so that folders made before are remade
_MODALITIES = (("CT",), ("MR",), ("CT",), ("MR",), ("CT", "MR"))  # of five patients


def make_example_volumes(
    folder: str | os.PathLike, num_patients: int = 60, seed: int = 0, num_workers: int | None = None
) -> Path:
    """Write made-up CT and MR volumes with label maps, or return at once when the folder already holds the same ones.

    Of five patients two have a CT, two an MR and one has both. The folder gets ``ct/EXAMPLE-0001/*.dcm`` (CT Image
    Storage, one series a folder, HU through the rescale), ``mr/EXAMPLE-0002.nii.gz`` (int16, with or without a scale
    in the header, or float32; some oblique), ``label_maps/EXAMPLE-0001_CT.nii.gz`` (uint8 on exactly the image's grid),
    ``labels.csv`` and, last of all, ``complete.json`` with the parameters. Volumes have 32 to 40 slices of 64 to 80
    rows and columns of 4 to 6.4 mm; slices are at least 1.25 times as far apart.

    ``labels.csv`` has one row a volume: ``file`` (folder of the series, or NIfTI file), ``label_map``, ``patient_id``,
    ``split``, ``modality``, ``lesion`` (0 or 1: whether the liver holds a lesion) and the volume of each organ in ml,
    ``liver_ml`` and so on. A folder without a matching ``complete.json`` is made anew; every file appears whole or not
    at all.

    Args:
        folder: where to write; made if missing. It must not hold anything else.
        num_patients: at least 10; splits are 70 % train, 10 % val and 20 % test of the patients.
        seed: names the cohort. Content depends on it and not on ``num_workers``.
        num_workers: threads; None for one per core, at most 8.

    Returns:
        The folder.

    Raises:
        ValueError: a parameter is out of range, or the folder holds something that was not made here.
        RuntimeError: the folder cannot be written.
    """
    check_num_patients(num_patients)
    folder = Path(folder)
    parameters = {"content_version": _CONTENT_VERSION, "num_patients": num_patients, "seed": seed}
    place = ExampleFolder(folder, "example volumes", ("ct", "mr", "label_maps"), ("labels.csv",), parameters)
    return place.fill(partial(_make, folder, num_patients, seed, num_workers))


def _make(folder: Path, num_patients: int, seed: int, num_workers: int | None) -> list[str]:
    order = random_stream(seed, "modalities").permutation(num_patients)
    modalities = [_MODALITIES[place % len(_MODALITIES)] for place in order]
    make_one = partial(_make_patient, folder, seed, modalities)
    rows: list[dict] = []
    files: list[str] = []
    for patient_rows, patient_files in map_patients(make_one, num_patients, num_workers):
        rows += patient_rows
        files += patient_files
    kinds = {row["patient_id"]: "" for row in rows}
    for row in rows:
        kinds[row["patient_id"]] += f"{row['modality']} {row['lesion']} "
    splits = deal_splits(kinds, seed)
    for row in rows:
        row["split"] = splits[row["patient_id"]]
    columns = ["file", "label_map", "patient_id", "split", "modality", "lesion", *(f"{organ}_ml" for organ in ORGANS)]
    write_table(folder / "labels.csv", columns, rows)
    return files


def _make_patient(
    folder: Path, seed: int, modalities: list[tuple[str, ...]], number: int
) -> tuple[list[dict], list[str]]:
    """Write one patient's scans; rows of the label table and names of the files."""
    body = build_body(seed, number)
    patient_id = f"EXAMPLE-{number + 1:04d}"
    rows, files = [], []
    for modality in modalities[number]:
        if modality == "CT":
            scan = scan_ct(body, seed, number)
            file = f"ct/{patient_id}"
            written, labels = _write_ct(folder, file, scan, body, patient_id, seed, number)
        else:
            scan = scan_mr(body, seed, number)
            file = f"mr/{patient_id}.nii.gz"
            written, labels = _write_mr(folder, file, scan, seed, number)
        label_map = f"label_maps/{patient_id}_{modality}.nii.gz"
        _write_nifti(folder / label_map, labels)
        files += [*written, label_map]
        voxel_ml = float(np.prod(scan.spacing_mm)) / 1000
        volumes = np.bincount(scan.labels.ravel(), minlength=len(ORGANS) + 1)[1:] * voxel_ml
        row = {"file": file, "label_map": label_map, "patient_id": patient_id, "modality": modality}
        row["lesion"] = int(body.lesion)
        rows.append(row | {f"{organ}_ml": f"{ml:.1f}" for organ, ml in zip(ORGANS, volumes, strict=True)})
    return rows, files


def _write_ct(
    folder: Path, file: str, scan: Scan, body: Body, patient_id: str, seed: int, number: int
) -> tuple[list[str], nib.Nifti1Image]:
    (folder / file).mkdir(exist_ok=True)
    names = []
    for dataset in ct_datasets(scan, body, patient_id, seed, number):
        stored = io.BytesIO()
        dataset.save_as(stored, enforce_file_format=True)
        names.append(f"{file}/{dataset.InstanceNumber:04d}.dcm")
        write_whole(folder / names[-1], stored.getvalue(), sync=False)  # complete.json comes after them all
    return names, _nifti(scan.labels, scan.affine)


def _write_mr(folder: Path, file: str, scan: Scan, seed: int, number: int) -> tuple[list[str], nib.Nifti1Image]:
    """Write whole numbers, whole numbers with a scale in the header, or floats; axes to LAS or RAS."""
    rng = random_stream(seed, "mr file", number)
    kind = int(rng.integers(3))
    image = _nifti(scan.array, scan.affine)
    labels = _nifti(scan.labels, scan.affine)
    if rng.random() < 0.5:
        image, labels = nib.as_closest_canonical(image), nib.as_closest_canonical(labels)
    array = np.asarray(image.dataobj)
    if kind < 2:
        slope = 1.0 if kind == 0 else float(array.max()) / 4095
        image = nib.Nifti1Image(np.rint(array / np.float32(slope)).astype(np.int16), None, image.header)
        image.header.set_data_dtype(np.int16)
        image.header.set_slope_inter(slope, 0)
    else:
        step = np.float32(2.0 ** np.floor(np.log2(array.max() / 4095)))  # 12 to 13 bits, which pack well
        image = nib.Nifti1Image(np.rint(array / step) * step, None, image.header)
    _write_nifti(folder / file, image)
    return [file], labels


def _nifti(array: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    """(D, H, W) with an affine in LPS to an image of axes (W, H, D) with one in RAS, in scanner coordinates."""
    image = nib.Nifti1Image(array.T, LPS_TO_RAS @ affine[:, [2, 1, 0, 3]])
    image.set_qform(image.affine, code="scanner")
    image.set_sform(image.affine, code="scanner")
    image.header.set_xyzt_units("mm")
    return image


def _write_nifti(path: Path, image: nib.Nifti1Image) -> None:
    write_whole(path, gzip.compress(image.to_bytes(), compresslevel=4, mtime=0), sync=False)
