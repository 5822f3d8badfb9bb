# SPDX-License-Identifier: Apache-2.0
"""A folder of volumes becomes a store in one call."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
from scan_folders import label_voxels, smooth_voxels, write_nifti
from synthetic_series import MR, SHAPE, write_series

from monai_ssl.data import CTIntensity, assert_disjoint, example_volumes, open_volume_store, read_volume, split_rows
from monai_ssl.data import volume_store as module

COUNT = 12


@pytest.fixture
def folder(tmp_path):
    """Twelve patients with an MR series, two with a second one, a NIfTI copy of the first, and a broken file."""
    root = tmp_path / "scans"
    for number in range(COUNT):
        study = {"PatientID": f"P{number}", "StudyInstanceUID": f"1.2.{number}", "Modality": "MR", "SOPClassUID": MR}
        write_series(root / f"{number:02d}" / "a", smooth_voxels(number, SHAPE), **study)
        if number < 2:
            write_series(root / f"{number:02d}" / "b", smooth_voxels(100 + number, SHAPE), **study)
    first = read_volume(root / "00" / "a")
    write_nifti(root / "copy.nii.gz", first.array, first.affine, codes="LPI")
    write_nifti(root / "more.nii.gz", smooth_voxels(50))
    (root / "broken.nii").write_bytes(b"nothing")
    return root


def call(folder, tmp_path, **options):
    options = {"num_workers": 0, "progress": False} | options
    return open_volume_store(folder, tmp_path / "cache", **options)


def reasons_of(store):
    return dict(zip(store.refused["path"].to_pylist(), store.refused["reason"].to_pylist(), strict=True))


def splits_of(store):
    return dict(zip(store.table["path"].to_pylist(), store.table["split"].to_pylist(), strict=True))


def test_a_folder_becomes_a_store_split_by_patient(folder, tmp_path):
    store = call(folder, tmp_path, modality="mr")
    assert len(store) == COUNT + 3 and store.spatial_dims == 3
    reasons = reasons_of(store)
    assert reasons.keys() == {"broken.nii", "copy.nii.gz"}
    assert reasons["copy.nii.gz"] == "duplicate: has the same voxels as 00/a"
    splits = splits_of(store)
    assert splits["00/a"] == splits["00/b"] and splits["01/a"] == splits["01/b"]
    parts = [store.table.take(split_rows(store.table, name)) for name in sorted(set(splits.values()))]
    assert len(parts) > 1
    for number, part in enumerate(parts):
        for other in parts[:number]:
            assert_disjoint(part, other)
    assert "P1" not in str(store.table.to_pylist()) and set(store.table["modality"].to_pylist()) == {"MR"}
    row = store.table["path"].to_pylist().index("03/a")
    source = read_volume(folder / "03" / "a", orientation="SPL")
    low, high = store.table["store_limits"][row].as_py()
    expected = np.clip((source.array - low) / (high - low), 0, 1)
    np.testing.assert_allclose(store.read(row), expected, atol=1e-4)
    np.testing.assert_allclose(store.affine(row), source.affine)


def test_the_second_call_takes_what_is_new_and_keeps_splits(folder, tmp_path):
    first = call(folder, tmp_path, modality="MR")
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.b2nd")}
    write_nifti(folder / "new.nii", smooth_voxels(60))
    second = call(folder, tmp_path, modality="MR")
    now = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.b2nd")}
    assert len(second) == len(first) + 1 and now.items() >= made.items() and len(now) == len(made) + 1
    assert splits_of(first).items() <= splits_of(second).items()
    other = open_volume_store(folder, tmp_path / "other", modality="MR", salt="x", num_workers=0, progress=False)
    assert splits_of(other) == splits_of(second)


def test_a_modality_is_demanded_unless_the_policy_says_it(folder, tmp_path):
    reasons = reasons_of(call(folder, tmp_path))
    assert "its modality is not known" in reasons["more.nii.gz"]
    assert "more.nii.gz" not in reasons_of(call(folder, tmp_path, policy="mr"))
    with pytest.raises(ValueError, match="modality is 'brain'; use a term of DICOM's Modality"):
        call(folder, tmp_path, modality="brain")
    with pytest.raises(ValueError, match="no intensity policy 'nonsense'"):
        call(folder, tmp_path, policy="nonsense")
    assert module._checked_modality(None, CTIntensity()) == "CT"
    assert module._checked_modality(" ct", CTIntensity()) == "CT"


@pytest.fixture
def decathlon(tmp_path):
    root = tmp_path / "Task99"
    names = [f"case_{number:02d}.nii.gz" for number in range(15)]
    for number, name in enumerate(names[:12]):
        write_nifti(root / "imagesTr" / name, smooth_voxels(number))
        write_nifti(root / "labelsTr" / name, label_voxels(number))
    for number, name in enumerate(names[12:]):
        write_nifti(root / "imagesTs" / name, smooth_voxels(90 + number))
    (root / "imagesTr" / "._case_00.nii.gz").write_bytes(b"of another system")
    content = {
        "modality": {"0": "MRI"},
        "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names[:12]],
        "test": [f"./imagesTs/{name}" for name in names[12:]],
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def test_a_decathlon_folder_is_split_and_keeps_its_test_images(decathlon, tmp_path):
    store = call(decathlon, tmp_path)
    splits = splits_of(store)
    assert len(store) == 15 and {splits[path] for path in splits if path.startswith("imagesTs")} == {"test"}
    dealt = [split for path, split in splits.items() if path.startswith("imagesTr")]
    assert "train" in dealt and len(set(dealt)) > 1
    assert sum(map(store.has_label_map, range(15))) == 12
    assert splits_of(call(decathlon, tmp_path)) == splits
    row = store.table["path"].to_pylist().index("imagesTr/case_01.nii.gz")
    labels = read_volume(decathlon / "labelsTr" / "case_01.nii.gz", orientation="SPL").array
    np.testing.assert_array_equal(store.read_label_map(row), labels)


def test_splits_that_the_user_gave_are_left_alone(decathlon, tmp_path):
    content = json.loads((decathlon / "dataset.json").read_text())
    content["validation"] = content["training"][:3]
    content["training"] = content["training"][3:]
    (decathlon / "dataset.json").write_text(json.dumps(content))
    splits = splits_of(call(decathlon, tmp_path))
    assert [splits[f"imagesTr/case_{number:02d}.nii.gz"] for number in range(12)] == ["val"] * 3 + ["train"] * 9
    assert not (tmp_path / "cache" / "splits.json").exists()


def test_too_much_that_cannot_be_used_stops_before_the_work(tmp_path):
    write_nifti(tmp_path / "in" / "a.nii", smooth_voxels(0))
    for number in range(3):
        (tmp_path / "in" / f"{number}.nii").write_bytes(b"nothing")
    with pytest.raises(RuntimeError, match=r"3 of 4 volumes and sets of files cannot be used \(allowed: 50%\)"):
        call(tmp_path / "in", tmp_path, modality="MR")
    assert not (tmp_path / "cache" / "store").exists()


def test_without_a_folder_the_example_volumes_are_made(tmp_path, monkeypatch):
    small = functools.partial(example_volumes.make_example_volumes, num_patients=10)
    monkeypatch.setattr(example_volumes, "make_example_volumes", lambda folder, num_workers=None: small(folder))
    store = call(None, tmp_path)
    assert len(store) >= 10 and not len(store.refused)
    assert set(store.table["split"].to_pylist()) == {"train", "val", "test"}
    assert set(store.table["modality"].to_pylist()) == {"CT", "MR"} and all(map(store.has_label_map, range(len(store))))


@pytest.mark.realdata
def test_a_real_labelled_folder(real_data, tmp_path):
    store = open_volume_store(
        real_data / "volumes_mr/msd_hippocampus", tmp_path / "cache", modality="MR", progress=False
    )
    assert len(store) == 208 and not len(store.refused)
    assert set(store.table["split"].to_pylist()) == {"train", "val", "test"}
    row = store.table["path"].to_pylist().index("imagesTr/hippocampus_007.nii.gz")
    labels = store.read_label_map(row)
    voxel_mm3 = float(np.prod(store.spacing_mm(row)))
    assert (labels == 1).sum() * voxel_mm3 == pytest.approx(store.table["anterior_mm3"][row].as_py())
