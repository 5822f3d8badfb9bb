# SPDX-License-Identifier: Apache-2.0
"""The embedded example volumes: files, geometry, labels, repeatability and whether they are a fair exercise."""

from __future__ import annotations

import csv
import errno
import json
from collections import defaultdict
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from sklearn.metrics import roc_auc_score

from monai_ssl.data import (
    EXAMPLE_ORGANS,
    example_folder,
    example_volumes,
    make_example_volumes,
    open_volumes,
    read_volume,
)
from monai_ssl.data.example_dicom import ct_datasets
from monai_ssl.data.phantom_organs import Body, build_body
from monai_ssl.data.phantom_scan import Scan, scan_ct, scan_mr

PATIENTS = 10
SEED = 3
LIVER, SPLEEN, KIDNEYS, LESION = 1, 2, 3, 4


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    return make_example_volumes(tmp_path_factory.mktemp("volumes") / "example", PATIENTS, SEED, num_workers=1)


@pytest.fixture(scope="module")
def rows(cohort) -> list[dict]:
    with (cohort / "labels.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def pairs(cohort, rows) -> list[tuple]:
    """Image and label map of each row, as they are read."""
    return [(read_volume(cohort / row["file"]), read_volume(cohort / row["label_map"])) for row in rows]


def number_of(row: dict) -> int:
    return int(row["patient_id"][-4:]) - 1


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# Files


def test_table_lists_every_file(cohort, rows):
    assert list(rows[0]) == [
        *("file", "label_map", "patient_id", "split", "modality", "lesion"),
        *("liver_ml", "spleen_ml", "kidneys_ml", "lesion_ml"),
    ]
    assert [f"{organ}_ml" for organ in EXAMPLE_ORGANS] == list(rows[0])[-4:]
    series = {row["file"] for row in rows if row["modality"] == "CT"}
    files = {row["file"] for row in rows if row["modality"] == "MR"}
    assert series == {f"ct/{path.name}" for path in cohort.glob("ct/*")}
    assert files == {f"mr/{path.name}" for path in cohort.glob("mr/*")}
    assert {row["label_map"] for row in rows} == {f"label_maps/{path.name}" for path in cohort.glob("label_maps/*")}
    for folder in series:
        found = open_volumes(cohort / folder)
        assert len(found.volumes) == 1 and not found.refused


def test_headers_describe_a_ct_of_nobody(cohort, rows):
    seen = set()
    for row in rows:
        if row["modality"] != "CT":
            continue
        headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in (cohort / row["file"]).iterdir()]
        first = headers[0]
        assert first.SOPClassUID.name == "CT Image Storage" and first.Modality == "CT"
        assert first.PatientID == row["patient_id"] and first.PatientID.startswith("EXAMPLE-")
        assert not (first.PatientBirthDate or first.StudyDate or first.AccessionNumber)
        assert len({(ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.FrameOfReferenceUID) for ds in headers}) == 1
        assert sorted(ds.InstanceNumber for ds in headers) == list(range(1, len(headers) + 1))
        assert all(ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID for ds in headers)
        own = {ds.SOPInstanceUID for ds in headers} | {first.SeriesInstanceUID}
        assert len(own) == len(headers) + 1 and not own & seen
        seen |= own


def test_patients_do_not_cross_splits(rows):
    splits, modalities = defaultdict(set), defaultdict(set)
    for row in rows:
        splits[row["patient_id"]].add(row["split"])
        modalities[row["patient_id"]].add(row["modality"])
    assert len(splits) == PATIENTS
    assert all(len(values) == 1 for values in splits.values())
    assert {split for (split,) in splits.values()} == {"train", "val", "test"}
    assert {frozenset(values) for values in modalities.values()} == {
        frozenset(kinds) for kinds in ({"CT"}, {"MR"}, {"CT", "MR"})
    }


def test_sixty_patients_are_split_42_6_12_with_each_modality_in_each_split(tmp_path, quick):
    with (make_example_volumes(tmp_path / "x", seed=0) / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    patients = {row["patient_id"]: row["split"] for row in rows}
    counts = [list(patients.values()).count(split) for split in ("train", "val", "test")]
    assert counts == [42, 6, 12]
    assert len({(row["split"], row["modality"]) for row in rows}) == 6


# Geometry and values


def test_grids_are_anisotropic_vary_and_are_shared_with_the_label_map(rows, pairs):
    spacings = set()
    for row, (image, labels) in zip(rows, pairs, strict=True):
        slices, *plane = image.array.shape
        assert 32 <= slices <= 40 and all(64 <= side <= 80 for side in plane)
        step, down, across = image.spacing_mm
        assert down == pytest.approx(across, abs=1e-3) and step > 1.2 * down
        assert labels.array.shape == image.array.shape
        np.testing.assert_allclose(labels.affine, image.affine, atol=1e-3)
        assert image.facts["oriented"] and image.orientation == (
            "SPL" if row["modality"] == "CT" else image.orientation
        )
        spacings.add(tuple(np.round(image.spacing_mm, 2)))
    assert len(spacings) == len(rows)
    assert {image.orientation for image, _ in pairs} == {"SPL", "SAR"}  # NIfTI of both handednesses
    oblique = [np.count_nonzero(np.abs(image.affine[:3, :3]) > 1e-4) > 3 for image, _ in pairs]
    assert [row["modality"] == "MR" for row in rows] == oblique


def test_ct_is_read_in_hu_as_it_was_made(cohort, rows, pairs):
    kinds = {}
    for row, (image, labels) in zip(rows, pairs, strict=True):
        if row["modality"] == "CT":
            header = pydicom.dcmread(next((cohort / row["file"]).iterdir()), stop_before_pixels=True)
            rescale = float(header.RescaleSlope), float(header.RescaleIntercept)
            kinds.setdefault(rescale, (number_of(row), image, labels))
            assert (image.modality, image.facts["unit"]) == ("CT", "HU")
            corner = image.array[:, :4, :4]  # in front of the patient, beside the belly
            assert np.median(corner) == pytest.approx(-1000, abs=5)
            assert np.median(image.array[labels.array == LIVER]) == pytest.approx(80, abs=80)
    assert len(kinds) >= 2
    for (slope, _), (number, image, labels) in list(kinds.items())[:2]:
        made = scan_ct(build_body(SEED, number), SEED, number)
        np.testing.assert_allclose(image.array, made.array, atol=slope / 2 + 1e-3)
        np.testing.assert_array_equal(labels.array, made.labels)
        np.testing.assert_allclose(image.affine, np.diag([-1, -1, 1, 1]) @ made.affine, atol=1e-3)


def test_mr_is_read_as_it_was_made_whatever_the_number_type(cohort, rows, pairs):
    kinds = {}
    for row, (image, labels) in zip(rows, pairs, strict=True):
        if row["modality"] == "MR":
            header = nib.load(cohort / row["file"]).header
            slope = header["scl_slope"]
            kinds.setdefault((header.get_data_dtype().name, bool(slope != 1)), (number_of(row), image, labels))
            assert image.array.min() >= 0
    assert len(kinds) >= 2
    for number, image, labels in list(kinds.values())[:2]:
        made = scan_mr(build_body(SEED, number), SEED, number)
        array, marks = image.to_orientation("SPL").array, labels.to_orientation("SPL").array
        np.testing.assert_allclose(array, made.array, atol=0.51 * max(1.0, made.array.max() / 2048))
        np.testing.assert_array_equal(marks, made.labels)


@pytest.mark.parametrize("slope, kind", [(1.0, "u"), (1.0, "i"), (0.5, "u")])
def test_every_way_to_store_hu_occurs(slope, kind):
    scan = Scan(
        np.full((2, 4, 4), -1000, np.float32), np.zeros((2, 4, 4), np.uint8), np.diag([7.0, 5, 5, 1])[:, [2, 1, 0, 3]]
    )
    found = [ct_datasets(scan, stub_body(), "EXAMPLE-0001", 0, number)[0] for number in range(20)]
    ways = {(float(ds.RescaleSlope), "ui"[ds.PixelRepresentation]) for ds in found}
    assert (slope, kind) in ways
    for ds in found:
        assert np.all(ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept) == -1000)


# Labels


def test_organs_lie_where_they_belong(pairs):
    """Liver right, spleen left and behind, kidneys low and behind on both sides: RAS mm."""
    places = defaultdict(list)
    for _, labels in pairs:
        for label in (LIVER, SPLEEN, KIDNEYS):
            voxels = np.argwhere(labels.array == label)
            places[label].append(voxels @ labels.affine[:3, :3].T + labels.affine[:3, 3])
    for liver, spleen, kidneys in zip(*(places[label] for label in (LIVER, SPLEEN, KIDNEYS)), strict=True):
        assert liver[:, 0].mean() > spleen[:, 0].mean() + 80
        assert spleen[:, 1].mean() < liver[:, 1].mean() and kidneys[:, 1].mean() < liver[:, 1].mean()
        assert kidneys[:, 2].mean() < min(liver[:, 2].mean(), spleen[:, 2].mean())
        assert np.ptp(kidneys[:, 0]) > 120


def test_labels_lie_on_their_organs(rows, pairs):
    """No fat or gas in the organs of a CT; what lies across from the liver is more mixed than the liver."""
    for row, (image, labels) in zip(rows, pairs, strict=True):
        liver = labels.array == LIVER
        across = liver[:, :, ::-1] & ~liver
        assert image.array[liver].std() < 0.9 * image.array[across].std(), row["file"]
        if row["modality"] == "CT":
            assert (image.array[across] < -40).mean() > 0.25
            for label in (LIVER, SPLEEN, KIDNEYS):
                assert (image.array[labels.array == label] < -40).mean() < 0.12, (row["file"], label)


def test_lesion_column_and_volumes_tell_what_the_label_map_holds(rows, pairs):
    for row, (_, labels) in zip(rows, pairs, strict=True):
        assert labels.array.max() <= LESION and np.all(labels.array == np.rint(labels.array))
        assert int(row["lesion"]) == int((labels.array == LESION).any())
        for label, organ in enumerate(EXAMPLE_ORGANS, 1):
            ml = (labels.array == label).sum() * np.prod(labels.spacing_mm) / 1000
            assert float(row[f"{organ}_ml"]) == pytest.approx(ml, abs=0.06, rel=1e-3)
    assert {row["lesion"] for row in rows} == {"0", "1"}


def test_both_scans_of_a_patient_show_the_same_organs(rows):
    ml = defaultdict(list)
    for row in rows:
        ml[row["patient_id"]].append([float(row[f"{organ}_ml"]) for organ in EXAMPLE_ORGANS[:3]])
    twice = [values for values in ml.values() if len(values) == 2]
    assert twice
    for ct, mr in twice:
        np.testing.assert_allclose(ct, mr, rtol=0.1, atol=3)


# Repeatability


def test_same_seed_gives_the_same_bytes_with_any_number_of_workers(cohort, tmp_path):
    assert contents(make_example_volumes(tmp_path / "two", PATIENTS, SEED, num_workers=3)) == contents(cohort)


def test_another_seed_gives_other_bodies():
    first = build_body(0, 0).tissue
    assert (first != build_body(1, 0).tissue).mean() > 0.05
    assert (first != build_body(0, 1).tissue).mean() > 0.05


def stub_body() -> Body:
    empty = np.zeros((2, 2, 2), dtype=np.float32)
    return Body(True, 50, True, empty.astype(np.uint8), empty, empty, 150.0, 100.0)


@pytest.fixture
def quick(monkeypatch):
    """Tiny scans in place of rendered ones, for tests of the folder."""

    def scan(body, seed, number):
        rng = np.random.default_rng([seed, number])
        affine = np.diag([7.0, 5.0, 5.0, 1.0])[[2, 1, 0, 3]]
        return Scan(rng.uniform(0, 99, (3, 4, 4)).astype(np.float32), np.zeros((3, 4, 4), np.uint8), affine)

    monkeypatch.setattr(example_volumes, "build_body", lambda seed, number: stub_body())
    monkeypatch.setattr(example_volumes, "scan_ct", scan)
    monkeypatch.setattr(example_volumes, "scan_mr", scan)


def test_complete_folder_is_left_alone_and_half_made_one_is_remade(tmp_path, quick):
    make = lambda patients: make_example_volumes(tmp_path / "x", patients, seed=5)  # noqa: E731
    before = contents(make(12))
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "x").rglob("*")}
    make(12)
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "x").rglob("*")}

    (tmp_path / "x" / "complete.json").unlink()  # as if stopped before the end
    series = next((tmp_path / "x" / "ct").iterdir())
    (series / "0001.dcm").write_bytes(b"half")
    (series / ".0002.dcm.1.partial").write_bytes(b"half")
    assert contents(make(12)) == before

    (series / "0003.dcm").unlink()  # a file was lost afterwards
    assert contents(make(12)) == before

    smaller = make(10)  # other parameters: nothing of the larger cohort stays
    names = {path.name[:12] for folder in ("ct", "mr", "label_maps") for path in (smaller / folder).iterdir()}
    assert names == {f"EXAMPLE-{k:04d}" for k in range(1, 11)}
    assert json.loads((smaller / "complete.json").read_text())["parameters"]["num_patients"] == 10


def test_foreign_folder_and_bad_parameters_are_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match=r"holds other things, such as mine\.txt"):
        make_example_volumes(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(ValueError, match="is a file"):
        make_example_volumes(tmp_path / "mine.txt")
    with pytest.raises(ValueError, match="num_patients is 9"):
        make_example_volumes(tmp_path / "x", 9)
    with pytest.raises(RuntimeError, match="example volumes cannot be written"):
        make_example_volumes(tmp_path / "mine.txt" / "x", 10)


@pytest.mark.parametrize("module", [example_volumes, example_folder])
def test_full_disk_is_said_and_leaves_no_marker(module, tmp_path, quick, monkeypatch):
    def full(path, data, sync=True):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_whole", full)
    with pytest.raises(RuntimeError, match="example volumes cannot be written: the disk is full"):
        make_example_volumes(tmp_path / "x", 10)
    assert not (tmp_path / "x" / "complete.json").exists()


# Difficulty


def test_brightness_does_not_tell_liver_from_spleen_in_ct(rows, pairs):
    """Area under the curve of the voxels' HU, 0.5 if it says nothing; a contrast medium may part them."""
    scores = []
    for row, (image, labels) in zip(rows, pairs, strict=True):
        if row["modality"] == "CT":
            liver, spleen = (image.array[labels.array == label] for label in (LIVER, SPLEEN))
            truth = np.repeat([0, 1], [liver.size, spleen.size])
            score = roc_auc_score(truth, np.concatenate([liver, spleen]))
            scores.append(max(score, 1 - score))
    assert np.median(scores) < 0.8


def test_place_does_not_tell_spleen_and_kidneys(rows, pairs):
    """Dice of what most of the others have at a voxel, after scaling all grids to one."""
    maps = []
    for _, labels in pairs:
        turned = labels.to_orientation("SPL").array
        picked = [np.arange(size) * side // size for size, side in zip((32, 64, 64), turned.shape, strict=True)]
        maps.append(turned[np.ix_(*picked)])
    for label in (SPLEEN, KIDNEYS):
        scores = []
        for row, own in zip(rows, maps, strict=True):
            others = [m for r, m in zip(rows, maps, strict=True) if r["patient_id"] != row["patient_id"]]
            guess, mark = np.mean([m == label for m in others], axis=0) > 0.4, own == label
            scores.append(2 * (guess & mark).sum() / (guess.sum() + mark.sum()))
        assert np.mean(scores) < 0.65, label
