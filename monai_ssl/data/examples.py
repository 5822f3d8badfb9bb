# SPDX-License-Identifier: Apache-2.0
"""Embedded example data: a cohort of made-up chest radiographs as DICOM files with labels and reports.

They let every command run offline within minutes, and they are hard in the way real ones are: several findings at once,
patients seen several times, and pose, breath, exposure and window that differ from image to image. They are for
trying software, not for learning medicine. See ``phantom_patient`` and ``phantom_radiograph`` for the pictures.
"""

from __future__ import annotations

import io
import json
import os
from functools import partial
from pathlib import Path

from monai_ssl.data.example_dicom import radiograph_dataset
from monai_ssl.data.example_folder import (
    ExampleFolder,
    check_num_patients,
    deal_splits,
    map_patients,
    write_table,
)
from monai_ssl.data.files import write_whole
from monai_ssl.data.phantom_chest import Box
from monai_ssl.data.phantom_patient import FINDINGS, dominant_finding, draw_patient, random_stream
from monai_ssl.data.phantom_radiograph import POOL, render_radiograph
from monai_ssl.data.phantom_report import write_report

EXAMPLE_FINDINGS = FINDINGS
"""The 0/1 columns of ``labels.csv``."""

_CONTENT_VERSION = 4  # raise it when pictures or tables change, so that folders made before are remade


def make_example_radiographs(
    folder: str | os.PathLike,
    num_patients: int = 300,
    images_per_patient: tuple[int, int] = (1, 4),
    size: int = 256,
    seed: int = 0,
    num_workers: int | None = None,
) -> Path:
    """Write made-up chest radiographs with findings, or return at once when the folder already holds the same ones.

    The folder gets ``images/*.dcm`` (Digital X-Ray, 12 or 16 bits, about one in ten MONOCHROME1), ``labels.csv``
    (``file``, ``patient_id``, ``study_id``, ``split``, ``view``, ``label``, one 0/1 column per finding, and ``report``;
    ``label`` is ``normal`` or the most urgent finding, and all images of one ``study_id`` have one report, see
    ``phantom_report``), ``finding_boxes.json`` (for each file a list of ``finding``, ``rows``, ``columns``, each
    span ``[first, last + 1]`` in pixels) and, last of all, ``complete.json`` with the parameters. A folder without a
    matching ``complete.json`` is made anew; every file appears whole or not at all.

    Args:
        folder: where to write; made if missing. It must not hold anything else.
        num_patients: at least 10; splits are 70 % train, 10 % val and 20 % test of the patients.
        images_per_patient: fewest and most images of one patient, which differ in pose and exposure only.
        size: rows and columns, a multiple of 8 and at least 64.
        seed: names the cohort. Content depends on it and not on ``num_workers``.
        num_workers: threads; None for one per core, at most 8.

    Returns:
        The folder.

    Raises:
        ValueError: a parameter is out of range, or the folder holds something that was not made here.
        RuntimeError: the folder cannot be written.
    """
    fewest, most = images_per_patient
    check_num_patients(num_patients)
    if not 1 <= fewest <= most:
        raise ValueError(f"images_per_patient is {images_per_patient}: give (fewest, most) with 1 <= fewest <= most")
    if size < 64 or size % POOL:
        raise ValueError(f"size is {size}: give a multiple of {POOL} that is at least 64")
    folder = Path(folder)
    parameters = {
        "content_version": _CONTENT_VERSION,
        "num_patients": num_patients,
        "images_per_patient": [fewest, most],
        "size": size,
        "seed": seed,
    }
    place = ExampleFolder(folder, "example radiographs", ("images",), ("labels.csv", "finding_boxes.json"), parameters)
    return place.fill(partial(_make, folder, parameters, num_workers))


def _make(folder: Path, parameters: dict, num_workers: int | None) -> list[str]:
    rows: list[dict] = []
    boxes: dict[str, list[dict]] = {}
    make_one = partial(_make_patient, folder, parameters)
    for patient_rows, patient_boxes in map_patients(make_one, parameters["num_patients"], num_workers):
        rows += patient_rows
        boxes |= patient_boxes
    splits = deal_splits({row["patient_id"]: row["label"] for row in rows}, parameters["seed"])
    for row in rows:
        row["split"] = splits[row["patient_id"]]
    columns = ["file", "patient_id", "study_id", "split", "view", "label", *FINDINGS, "report"]
    write_table(folder / "labels.csv", columns, rows)
    write_whole(folder / "finding_boxes.json", json.dumps(boxes, indent=1).encode())
    return list(boxes)


def _make_patient(folder: Path, parameters: dict, number: int) -> tuple[list[dict], dict[str, list[dict]]]:
    """Write one patient's images; rows of the label table and the boxes of each file."""
    seed, size = parameters["seed"], parameters["size"]
    patient = draw_patient(seed, number)
    fewest, most = parameters["images_per_patient"]
    present = {lesion.finding for lesion in patient.lesions}
    rows, boxes = [], {}
    patient_id = f"EXAMPLE-{number + 1:04d}"
    studies = random_stream(seed, "studies", number)
    study = 0
    for image in range(int(random_stream(seed, "images", number).integers(fewest, most + 1))):
        study += image == 0 or studies.random() < 0.5
        radiograph = render_radiograph(patient, seed, number, image, size)
        file = f"images/{patient_id}_{image + 1}.dcm"
        stored = io.BytesIO()
        dataset = radiograph_dataset(radiograph, patient, patient_id, seed, number, image)
        dataset.save_as(stored, enforce_file_format=True)
        write_whole(folder / file, stored.getvalue(), sync=False)  # complete.json comes after them all
        row = {
            "file": file,
            "patient_id": patient_id,
            "study_id": f"{patient_id}-S{study}",
            "view": radiograph.view,
            "label": dominant_finding(patient.lesions),
        }
        rows.append(row | {finding: int(finding in present) for finding in FINDINGS})
        boxes[file] = [_box_entry(finding, box) for finding, box in radiograph.boxes]
    for this in range(1, study + 1):
        own = [row for row in rows if row["study_id"] == f"{patient_id}-S{this}"]
        report = write_report(patient, [row["view"] for row in own], random_stream(seed, "report", number, this))
        for row in own:
            row["report"] = report
    return rows, boxes


def _box_entry(finding: str, box: Box) -> dict:
    return {"finding": finding, "rows": [box[0], box[2]], "columns": [box[1], box[3]]}
