# SPDX-License-Identifier: Apache-2.0
"""The embedded example cohort: its files, its labels, its repeatability and whether it is a fair exercise."""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pydicom
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from monai_ssl.data.example_dicom import radiograph_dataset
from monai_ssl.data.examples import EXAMPLE_FINDINGS, make_example_radiographs
from monai_ssl.data.phantom_chest import Pose, draw_pose, project
from monai_ssl.data.phantom_patient import (
    URGENCY,
    Lesion,
    dominant_finding,
    draw_lesions,
    draw_patient,
    random_stream,
)
from monai_ssl.data.phantom_radiograph import PhantomRadiograph, draw_exposure, expose, render_radiograph
from monai_ssl.data.readers import read_radiograph

PATIENTS = 60
SIZE = 96


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    return make_example_radiographs(tmp_path_factory.mktemp("cohort") / "example", PATIENTS, (1, 3), SIZE, seed=3)


@pytest.fixture(scope="module")
def rows(cohort) -> list[dict]:
    with (cohort / "labels.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def headers(cohort, rows) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(cohort / row["file"]) for row in rows]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# Files


def test_headers_describe_a_digital_chest_radiograph(rows, headers):
    assert len(rows) == len(headers) >= PATIENTS
    for row, ds in zip(rows, headers, strict=True):
        assert ds.SOPClassUID.name == "Digital X-Ray Image Storage - For Presentation"
        assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
        assert (ds.Modality, ds.BodyPartExamined, ds.PatientID) == ("DX", "CHEST", row["patient_id"])
        assert ds.PatientID.startswith("EXAMPLE-")
        assert ds.ViewPosition == row["view"]
        assert (ds.Rows, ds.Columns, ds.BitsAllocated) == (SIZE, SIZE, 16)
        assert ds.HighBit == ds.BitsStored - 1
        assert 320 <= ds.PixelSpacing[0] * SIZE <= 440  # a detector of 32 to 44 cm
        assert ds.StudyInstanceUID.is_valid and ds.SeriesInstanceUID.is_valid
    assert {ds.BitsStored for ds in headers} == {12, 16}
    assert {ds.ViewPosition for ds in headers} == {"AP", "PA"}
    for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        assert len({ds[keyword].value for ds in headers}) == len(headers)


def test_pixels_fill_the_bits_they_say(headers):
    for ds in headers:
        assert ds.pixel_array.max() < 2**ds.BitsStored
    deep = [ds.pixel_array for ds in headers if ds.BitsStored == 16]
    assert all(np.unique(pixels).size > 2000 for pixels in deep)  # no 8-bit picture in 16-bit clothes


def test_about_one_in_ten_is_monochrome1():
    blank = PhantomRadiograph(np.zeros((8, 8), dtype=np.float32), "PA", 1.5, ())
    patient = draw_patient(0, 0)
    datasets = [radiograph_dataset(blank, patient, "EXAMPLE-0001", 0, number, 0) for number in range(400)]
    counts = Counter(ds.PhotometricInterpretation for ds in datasets)
    assert set(counts) == {"MONOCHROME1", "MONOCHROME2"}
    assert 0.06 < counts["MONOCHROME1"] / len(datasets) < 0.14


def test_reader_shows_the_picture_whatever_the_polarity_depth_and_window(cohort, rows, headers):
    chosen = {(ds.PhotometricInterpretation, ds.BitsStored): row for row, ds in zip(rows, headers, strict=True)}
    assert {photometric for photometric, _ in chosen} == {"MONOCHROME1", "MONOCHROME2"}
    for row in chosen.values():
        name = Path(row["file"]).stem
        number, image = int(name[8:12]) - 1, int(name[13:]) - 1
        wanted = render_radiograph(draw_patient(3, number), 3, number, image, SIZE).pixels
        array, meta = read_radiograph(cohort / row["file"])
        low, high = meta["value_range"]
        np.testing.assert_allclose((array - low) / (high - low), wanted, atol=2 / 4096)


def test_labels_belong_to_the_files(cohort, rows):
    columns = ["file", "patient_id", "study_id", "split", "view", "label", *EXAMPLE_FINDINGS, "report"]
    assert list(rows[0]) == columns
    assert sorted(row["file"] for row in rows) == sorted(f"images/{p.name}" for p in cohort.glob("images/*"))
    for row in rows:
        present = [finding for finding in URGENCY if row[finding] == "1"]
        assert row["label"] == (present[0] if present else "normal")
        lesions = draw_patient(3, int(row["patient_id"][-4:]) - 1).lesions
        assert {lesion.finding for lesion in lesions} == set(present)


def test_patients_do_not_cross_splits_and_keep_their_findings(rows):
    splits, findings = defaultdict(set), defaultdict(set)
    for row in rows:
        splits[row["patient_id"]].add(row["split"])
        findings[row["patient_id"]].add(tuple(row[finding] for finding in EXAMPLE_FINDINGS))
    assert all(len(values) == 1 for values in [*splits.values(), *findings.values()])
    counts = Counter(split for (split,) in splits.values())
    assert counts == {"train": 42, "val": 6, "test": 12}
    for split in counts:
        assert len({row["label"] for row in rows if row["split"] == split}) >= 4


def test_boxes_are_listed_for_the_findings_in_the_picture(cohort, rows):
    boxes = json.loads((cohort / "finding_boxes.json").read_text())
    assert list(boxes) == [row["file"] for row in rows]
    for row in rows:
        named = {box["finding"] for box in boxes[row["file"]]}
        assert named == {finding for finding in EXAMPLE_FINDINGS if row[finding] == "1"}
        for box in boxes[row["file"]]:
            for first, last in (box["rows"], box["columns"]):
                assert 0 <= first < last <= SIZE


# Repeatability


def test_same_seed_gives_the_same_bytes_with_any_number_of_workers(tmp_path):
    one = make_example_radiographs(tmp_path / "one", 10, (1, 2), 64, seed=5, num_workers=1)
    two = make_example_radiographs(tmp_path / "two", 10, (1, 2), 64, seed=5, num_workers=3)
    other = make_example_radiographs(tmp_path / "other", 10, (1, 2), 64, seed=6)
    assert contents(one) == contents(two)
    assert contents(one)["images/EXAMPLE-0001_1.dcm"] != contents(other)["images/EXAMPLE-0001_1.dcm"]


def test_complete_folder_is_left_alone_and_half_made_one_is_remade(tmp_path):
    make = lambda patients: make_example_radiographs(tmp_path / "x", patients, (1, 2), 64, seed=5)  # noqa: E731
    before = contents(make(12))
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "x").rglob("*")}
    make(12)
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "x").rglob("*")}

    (tmp_path / "x" / "complete.json").unlink()  # as if stopped before the end
    (tmp_path / "x" / "images" / "EXAMPLE-0003_1.dcm").write_bytes(b"half")
    (tmp_path / "x" / "images" / ".EXAMPLE-0004_1.dcm.1.partial").write_bytes(b"half")
    assert contents(make(12)) == before

    (tmp_path / "x" / "images" / "EXAMPLE-0003_1.dcm").unlink()  # a file was lost afterwards
    assert contents(make(12)) == before

    smaller = make(10)  # other parameters: nothing of the larger cohort stays
    assert {path.name[:12] for path in smaller.glob("images/*")} == {f"EXAMPLE-{k:04d}" for k in range(1, 11)}
    assert json.loads((smaller / "complete.json").read_text())["parameters"]["num_patients"] == 10


def test_foreign_folder_and_bad_parameters_are_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match=r"holds other things, such as mine\.txt"):
        make_example_radiographs(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(ValueError, match="is a file"):
        make_example_radiographs(tmp_path / "mine.txt")
    with pytest.raises(ValueError, match="num_patients is 9"):
        make_example_radiographs(tmp_path / "x", 9)
    with pytest.raises(ValueError, match="images_per_patient"):
        make_example_radiographs(tmp_path / "x", 10, (2, 1))
    with pytest.raises(ValueError, match="multiple of 8"):
        make_example_radiographs(tmp_path / "x", size=100)
    with pytest.raises(RuntimeError, match="cannot be written"):
        make_example_radiographs(tmp_path / "mine.txt" / "x", 10, size=64)


# Pictures


def still_pose(**changes) -> Pose:
    values = {"view": "PA", "field_cm": 38.4, "rotation": 0.0, "shift": (0.0, 0.0), "twist": 0.0, "breath": 0.0}
    return Pose(**{**values, "scapula": -2.0, **changes})


def test_moving_the_patient_moves_the_picture():
    patient = draw_patient(0, 1)
    still, _ = project(patient, still_pose(), 128)
    moved, _ = project(patient, still_pose(shift=(1.5, -0.9)), 128)  # 0.3 cm a pixel: 5 right, 3 up
    np.testing.assert_allclose(moved[:-3, 5:], still[3:, :-5], atol=2e-3)
    assert np.abs(moved - still).mean() > 0.02


def test_anatomy_is_the_right_way_round():
    """Lungs let more through than the mediastinum, ribs less than gaps; the heart lies to the patient's left."""
    healthy = [draw_patient(0, number) for number in range(20)]
    mean = np.mean([project(patient, still_pose(), 128, lesions=False)[0] for patient in healthy], axis=0)
    right, middle, left = mean[50:60, 30:45].mean(), mean[50:60, 60:68].mean(), mean[50:60, 83:98].mean()
    assert middle > right + 1.0 and middle > left + 1.0
    assert mean[75:85, 75:82].mean() > mean[75:85, 46:53].mean() + 0.5  # heart against its mirror image
    assert mean[2:8, :10].mean() < 0.2  # air beside the neck


@pytest.mark.parametrize("finding", EXAMPLE_FINDINGS)
def test_findings_show_in_their_boxes(finding):
    """Mean change of the attenuation and of the picture in the box, against the same chest in good health."""
    changes, shades, elsewhere = [], [], []
    number = 0
    while len(changes) < 8:
        patient = draw_patient(1, number)
        if {lesion.finding for lesion in patient.lesions} == {finding}:
            pose = draw_pose(random_stream(1, "pose", number, 0))
            ill, boxes = project(patient, pose, 128)
            well, none = project(patient, pose, 128, lesions=False)
            assert none == [] and boxes
            inside = np.zeros(ill.shape, dtype=bool)
            for name, (top, left, bottom, right) in boxes:
                assert name == finding
                inside[top:bottom, left:right] = True
            exposure = draw_exposure(random_stream(1, "exposure", number, 0), pose.view)
            shown = [expose(part, exposure, np.random.default_rng(0)) for part in (ill, well)]
            width = max(exposure.grey[1] - exposure.grey[0], 0.1)
            changes.append(np.abs(ill - well)[inside].mean())
            elsewhere.append(np.abs(ill - well)[~inside].mean())
            shades.append(np.abs(shown[0] - shown[1])[inside].mean() / width)
        number += 1
    assert np.median(changes) > 0.1
    assert np.median(changes) > 5 * np.median(elsewhere)
    assert np.median(shades) > 0.03


def test_prevalence_and_naming():
    cohort = [draw_lesions(random_stream(2, "lesions", number)) for number in range(1500)]
    for finding in EXAMPLE_FINDINGS:
        share = np.mean([any(lesion.finding == finding for lesion in lesions) for lesions in cohort])
        assert 0.25 < share < 0.36
    assert 0.25 < np.mean([lesions == () for lesions in cohort]) < 0.35
    assert max(sum(lesion.finding == "nodule" for lesion in lesions) for lesions in cohort) == 8
    assert dominant_finding(()) == "normal"
    assert dominant_finding((Lesion("cardiomegaly"), Lesion("effusion"))) == "effusion"


@pytest.mark.slow
def test_linear_model_on_pixels_does_not_solve_it():
    """Logistic regression on 32 x 32 pixels, 160 patients for training and 160 for testing."""
    pixels, labels = [], []
    for number in range(320):
        patient = draw_patient(4, number)
        image = render_radiograph(patient, 4, number, 0, 64).pixels
        pixels.append(image.reshape(32, 2, 32, 2).mean(axis=(1, 3)).ravel())
        labels.append([any(lesion.finding == name for lesion in patient.lesions) for name in EXAMPLE_FINDINGS])
    x, y = StandardScaler().fit_transform(np.stack(pixels)), np.array(labels)
    scores = []
    for column in range(y.shape[1]):
        model = LogisticRegression(C=1e-3, max_iter=200).fit(x[:160], y[:160, column])
        scores.append(roc_auc_score(y[160:, column], model.decision_function(x[160:])))
    assert np.mean(scores) < 0.72
