# SPDX-License-Identifier: Apache-2.0
"""Volumes to a store: their values, their place, their label maps, and what is refused."""

from __future__ import annotations

import csv
import re
import time

import nibabel as nib
import numpy as np
import pyarrow as pa
import pytest
from array_folders import random_array, read_array, write_arrays
from synthetic_series import oblique, random_voxels, write_series
from volume_folders import SPL, ct_volume, index_of, index_row, label_map, write_nifti, write_volumes

from monai_ssl.data import CTIntensity, ImageStore, build_volume_index, prepare_store, prepare_volumes, read_volume
from monai_ssl.data import items as items_module


def prepare(tmp_path, index, store="store", **options):
    options = {"num_workers": 0, "progress": False} | options
    return prepare_volumes(index, tmp_path / "v", tmp_path / store, **options)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "v"


def voxel_at(affine, mm) -> np.ndarray:
    return np.linalg.solve(affine, [*mm, 1])[:3]


@pytest.mark.parametrize("workers", [0, 2])
def test_whole_hounsfield_units_and_labels_come_back_exactly(tmp_path, folder, workers):
    index = write_volumes(folder)
    store = prepare(tmp_path, index, num_workers=workers)
    assert len(store) == 3 and not len(store.refused) and store.has_volumes and store.spatial_dims == 3
    assert store.policy.policy_of("CT") == CTIntensity()
    for i in range(3):
        expected = np.clip(ct_volume(seed=i), -1000, 1000)
        np.testing.assert_array_equal(store.read_stored(i), expected + 1000)
        assert store.dtype(i) == np.uint16 and store.levels(i) == 2000
        np.testing.assert_array_equal(store.read_label_map(i), label_map())
        assert store.has_label_map(i) and store.label_values(i) == [0, 1, 2]
        np.testing.assert_allclose(store.affine(i), SPL, atol=1e-5)
        np.testing.assert_allclose(store.spacing_mm(i), (2, 1.5, 1), rtol=1e-6)
        shape, affine = store.source_grid(i)
        assert shape == (12, 20, 16)
        np.testing.assert_allclose(affine, SPL, atol=1e-5)
        box = (slice(2, 9), slice(5, 20), slice(0, 3))
        np.testing.assert_array_equal(store.read_label_map(i, box), label_map()[box])
        assert store.foreground(i) == (slice(3, 9), slice(5, 15), slice(4, 12))
    said = store.describe()
    assert "3 volumes" in said and "2 x 1.5 x 1 mm" in said and "orientation SPL" in said and "0, 1, 2" in said


def test_label_points_are_voxels_of_their_label(tmp_path, folder):
    store = prepare(tmp_path, write_volumes(folder, 1))
    points = store.label_points(0)
    assert len(points) == np.count_nonzero(label_map())
    assert all(label_map()[d, h, w] == label for label, d, h, w in points)


@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize("spacing", [None, (2.0, 1.0, 1.5)])
@pytest.mark.parametrize("codes", [None, "RAS", "PIR"])
def test_a_voxel_keeps_its_place_in_the_patient(tmp_path, folder, codes, spacing, crop):
    """A bright blob and its label, found again at their millimetres, whatever was done to the grid."""
    shape, affine = (24, 30, 28), np.diag([2.0, 1.0, 1.5, 1.0]) @ np.eye(4)
    affine[:3, :3] = np.array([[0, 0.1, -1.5], [0.1, -1.0, 0], [2.0, 0.1, 0.1]])  # a little oblique
    affine[:3, 3] = [20, 30, -40]
    volume, labels = np.full(shape, -1000, np.int16), np.zeros(shape, np.uint8)
    volume[4:20, 5:25, 6:22] = 0
    blob = (slice(12, 16), slice(8, 12), slice(15, 19))
    volume[blob], labels[blob] = 1000, 1
    centre = (affine @ (13.5, 9.5, 16.5, 1))[:3]
    write_nifti(folder / "a.nii.gz", volume, affine, codes)
    write_nifti(folder / "b.nii.gz", labels, affine, "LPS")  # label map in yet another order
    index = index_of([index_row(folder, ["a.nii.gz"], label_map="b.nii.gz")])
    store = prepare(tmp_path, index, spacing_mm=spacing, crop_foreground=crop)
    assert len(store) == 1, store.refused["reason"].to_pylist()
    image, found = store.read(0), store.read_label_map(0)
    assert image.shape == found.shape == store.shape(0)
    if spacing is not None:
        np.testing.assert_allclose(store.spacing_mm(0), spacing, rtol=1e-6)
    if crop:
        assert np.prod(image.shape) * np.prod(store.spacing_mm(0)) < 0.5 * volume.size * 3
    for mass in (np.clip(image - 0.5, 0, None) ** 4, found.astype(float)):
        middle = np.argwhere(mass > 0).T @ mass[mass > 0] / mass.sum()
        np.testing.assert_allclose((store.affine(0) @ (*middle, 1))[:3], centre, atol=0.25)
    box = store.foreground(0)
    first = np.array([part.start for part in box]) + [0.5] * 3
    assert (store.read(0)[box] > 0.2).mean() > 0.8 and (voxel_at(affine, (store.affine(0) @ (*first, 1))[:3]) > 3).all()
    shape_there, affine_there = store.source_grid(0)
    source = read_volume(folder / "a.nii.gz")
    assert shape_there == source.array.shape
    np.testing.assert_allclose(affine_there, source.affine)


@pytest.mark.parametrize("orientation", [None, oblique(25, 10), (1, 0, 0, 0, 0, -1)])
def test_dicom_and_nifti_of_a_study_are_stored_alike(tmp_path, folder, orientation):
    options = {} if orientation is None else {"orientation": orientation}
    paths = write_series(folder / "series", random_voxels(), **options)
    dicom = read_volume(folder / "series")
    write_nifti(folder / "a.nii.gz", dicom.array.astype(np.int16), dicom.affine, "LAS")
    rows = [
        index_row(folder, sorted(f"series/{path.name}" for path in paths)),
        index_row(folder, ["a.nii.gz"], modality="CT"),
    ]
    store = prepare(tmp_path, index_of(rows))
    assert len(store) == 2, store.refused["reason"].to_pylist()
    np.testing.assert_array_equal(store.read_stored(0), store.read_stored(1))
    np.testing.assert_allclose(store.affine(0), store.affine(1), atol=1e-4)
    coarse = prepare(tmp_path, index_of(rows), spacing_mm=(3, 1, 1))
    np.testing.assert_allclose(coarse.read(0), coarse.read(1), atol=2 / 65535)  # NIfTI rounds the affine to float32
    np.testing.assert_allclose(coarse.affine(0), coarse.affine(1), atol=1e-4)


def test_a_folder_is_indexed_and_prepared(tmp_path, folder):
    """The real index: a table with image and label, a DICOM series, a fourth axis, and a label map of another grid."""
    write_series(folder / "series", random_voxels())
    for name, labels in (("a", label_map()), ("b", label_map()[1:])):
        write_nifti(folder / f"{name}.nii.gz", ct_volume(seed=ord(name)), codes="LPI")
        write_nifti(folder / "seg" / f"{name}.nii.gz", labels, codes="RAS")
    two = np.stack([ct_volume(seed=8).T, ct_volume(seed=9).T], axis=-1)
    nib.save(nib.Nifti1Image(two, SPL[:, [2, 1, 0, 3]]), folder / "two.nii")
    lines = ["image,label,modality", "a.nii.gz,seg/a.nii.gz,CT", "b.nii.gz,seg/b.nii.gz,CT", "two.nii,,CT"]
    (folder / "labels.csv").write_text("\n".join(lines))
    index = build_volume_index(folder, num_workers=0, progress=False)
    store = prepare(tmp_path, index)
    assert store.table["path"].to_pylist() == ["a.nii.gz", "series", "two.nii#0", "two.nii#1"]
    assert store.refused["path"].to_pylist() == ["b.nii.gz"] and "another grid" in store.refused["reason"][0].as_py()
    expected = np.clip(ct_volume(seed=ord("a")), -1000, 1000) + 1000
    np.testing.assert_array_equal(store.read_stored(0), expected)
    np.testing.assert_array_equal(store.read_label_map(0), label_map())
    assert [store.has_label_map(i) for i in range(4)] == [True, False, False, False]
    np.testing.assert_array_equal(store.read_stored(3), np.clip(ct_volume(seed=9), -1000, 1000) + 1000)


def test_mr_and_ct_in_one_store_each_by_its_own_policy_and_a_lone_policy_refuses_the_other(tmp_path, folder):
    write_nifti(folder / "ct.nii", ct_volume())
    write_nifti(folder / "mr.nii", (ct_volume() + 1100).astype(np.float32) * 1000)
    rows = [index_row(folder, ["ct.nii"]), index_row(folder, ["mr.nii"], modality="MR")]
    rows.append(rows[1] | {"path": "again", "modality": None})
    store = prepare(tmp_path, index_of(rows))
    assert store.table["path"].to_pylist() == ["ct.nii", "mr.nii"] and store.table["store_levels"][0].as_py() == 2000
    assert store.table["store_limits"][1].as_py()[1] > 1e6
    assert store.refused["reason"].to_pylist()[0].startswith("its modality is not known")
    alone = prepare(tmp_path, index_of(rows), "alone", policy="ct_abdomen", max_refused_fraction=0.7)
    assert alone.table["path"].to_pylist() == ["ct.nii"]
    assert alone.refused["reason"][0].as_py() == "its modality is MR, and the intensity policy 'ct_abdomen' is for CT"


def test_bad_volumes_and_label_maps_become_refused_rows(tmp_path, folder):
    ok = label_map()
    wrong = {
        "grid": (ok[:, :-1], SPL),
        "moved": (ok, SPL + [[0, 0, 0, 1.0], [0] * 4, [0] * 4, [0] * 4]),
        "unknown": (ok * 9, SPL),
        "probability": (ok * np.float32(0.3), SPL),
        "large": (ok.astype(np.int16) * 200, SPL),
        "negative": (ok.astype(np.int16) * -1, SPL),
        "nan": (np.where(ok == 1, np.nan, ok).astype(np.float32), SPL),
    }
    rows = []
    write_nifti(folder / "ok.nii", ct_volume())
    for name, (labels, affine) in wrong.items():
        write_nifti(folder / f"{name}-seg.nii", labels, affine)
        rows.append(index_row(folder, ["ok.nii"], label_map=f"{name}-seg.nii", path=name))
    write_nifti(folder / "broken-seg.nii.gz", ok).write_bytes(b"no NIfTI")
    for name in ("broken-seg.nii.gz", "none-seg.nii"):
        rows.append(index_row(folder, ["ok.nii"], label_map=name, path=name))
    both = nib.Nifti1Image(np.stack([ok.T, ok.T], axis=-1), SPL[:, [2, 1, 0, 3]])
    nib.save(both, folder / "series-seg.nii")
    rows.append(index_row(folder, ["ok.nii"], label_map="series-seg.nii", path="series"))
    write_nifti(folder / "constant.nii", np.full((9, 9, 9), -500, np.int16))
    write_nifti(folder / "changed.nii", ct_volume(seed=5))
    write_nifti(folder / "cut.nii", ct_volume(seed=6))
    write_nifti(folder / "gone.nii", ct_volume(seed=7))
    write_nifti(folder / "offset.nii", ct_volume(seed=8) + np.int16(2024))
    rows += [index_row(folder, [f"{name}.nii"], path=name) for name in ("constant", "changed", "cut", "gone", "offset")]
    (folder / "gone.nii").unlink()
    whole = (folder / "cut.nii").read_bytes()
    (folder / "cut.nii").write_bytes(whole[: len(whole) // 2])
    rows[-3] |= {"bytes": len(whole) // 2, "mtime_ns": (folder / "cut.nii").stat().st_mtime_ns}
    write_nifti(folder / "changed.nii", ct_volume((13, 20, 16), seed=5))
    rows.append(index_row(folder, ["ok.nii"], path="good"))
    store = prepare(tmp_path, index_of(rows), label_values=[0, 1, 2], max_refused_fraction=1.0)
    assert store.table["path"].to_pylist() == ["good"]
    reasons = dict(zip(store.refused["path"].to_pylist(), store.refused["reason"].to_pylist(), strict=True))
    expected = {
        "grid": "another grid: .*12 x 19 x 16.*12 x 20 x 16",
        "moved": "another grid: .*1.0",
        "unknown": "label_values: 9, 18",
        "probability": "not whole numbers",
        "large": "from 0 to 400; labels are 0 to 255",
        "negative": "from -2 to 0",
        "nan": "its label map has values that are not finite",
        "broken-seg.nii.gz": "its label map cannot be used: ",
        "none-seg.nii": "its label map is gone",
        "series": "its file holds 2 volumes, not one",
        "constant": "same grey value",
        "changed": "changed since they were indexed",
        "cut": "broken or cut off",
        "gone": "gone since it was indexed",
        "offset": "does not look like Hounsfield units",
    }
    assert reasons.keys() == expected.keys()
    for name, pattern in expected.items():
        assert re.search(pattern, reasons[name]), (name, reasons[name])


def test_nan_voxels_are_filled_with_the_lowest_value(tmp_path, folder):
    volume = ct_volume().astype(np.float32)
    volume[5, 5, 5] = np.nan
    write_nifti(folder / "a.nii", volume)
    store = prepare(tmp_path, index_of([index_row(folder, ["a.nii"])]))
    assert store.read(0)[5, 5, 5] == 0


def test_oriented_is_demanded_only_where_axes_are_turned(tmp_path, folder):
    path = write_nifti(folder / "a.nii", ct_volume())
    image = nib.Nifti1Image(np.asarray(nib.load(path).dataobj).copy(), None)
    image.header.set_zooms((1, 1, 1))
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nib.save(image, path)
    write_nifti(folder / "b.nii", ct_volume(seed=1))
    index = index_of([index_row(folder, ["a.nii"]), index_row(folder, ["b.nii"])])
    store = prepare(tmp_path, index)
    assert "does not state its orientation" in store.refused["reason"][0].as_py()
    assert len(prepare(tmp_path, index, "own", orientation=None)) == 2


def test_what_is_there_is_kept_and_a_changed_label_map_prepared_again(tmp_path, folder, capsys):
    index = write_volumes(folder)
    prepare(tmp_path, index)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.b2nd")}
    assert len(made) == 6
    prepare(tmp_path, index, progress=True)
    assert "prepared 0 volumes" in (said := capsys.readouterr().err) and "kept 3" in said
    write_nifti(folder / "v1-seg.nii.gz", np.flip(label_map(), 1))
    store = prepare(tmp_path, index, progress=True)
    assert "prepared 1 volumes" in (said := capsys.readouterr().err) and "kept 2" in said
    np.testing.assert_array_equal(store.read_label_map(1), np.flip(label_map(), 1))
    assert all(path.stat().st_mtime_ns == mtime for path, mtime in made.items())
    other = prepare(tmp_path, index, spacing_mm=(4, 3, 2), progress=True)
    assert "spacing_mm None -> [4.0, 3.0, 2.0]" in capsys.readouterr().err
    assert other.shape(0) == (6, 10, 8) and store.read(0).shape == (12, 20, 16)


def test_labels_may_be_forbidden_later(tmp_path, folder):
    index = write_volumes(folder, 2)
    write_nifti(folder / "v1-seg.nii.gz", (label_map() == 1).astype(np.uint8))
    assert len(prepare(tmp_path, index)) == 2
    store = prepare(tmp_path, index, label_values=[1])
    assert store.table["path"].to_pylist() == ["v1.nii"]
    assert store.refused["reason"].to_pylist() == ["its label map has labels that are not among label_values: 2"]


def test_the_users_word_on_the_modality_is_part_of_what_is_prepared(tmp_path, folder):
    index = write_volumes(folder, 1)
    assert prepare(tmp_path, index).levels(0) == 2000
    place = index.schema.get_field_index("modality")
    mr = index.set_column(place, "modality", pa.array(["MR"]))
    assert prepare(tmp_path, mr).levels(0) != 2000


def test_a_damaged_label_map_is_made_again(tmp_path, folder):
    index = write_volumes(folder, 2)
    store = prepare(tmp_path, index)
    path = tmp_path / "store" / store.table["store_label_item"][1].as_py()
    path.write_bytes(path.read_bytes()[:50])
    np.testing.assert_array_equal(prepare(tmp_path, index).read_label_map(1), label_map())


def test_interrupted_and_run_again_gives_the_same_store(tmp_path, folder, monkeypatch):
    index = write_volumes(folder, 4)
    written = []

    def write_and_stop(path, *args, **kwargs):
        if len(written) == 4:  # two volumes and their label maps are there, a third has half of it
            raise KeyboardInterrupt
        written.append(path)
        return items_module.write_item(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("monai_ssl.data.volume_items.write_item", write_and_stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path, index)
    with pytest.raises(FileNotFoundError):
        ImageStore(tmp_path / "store")
    made = {path: path.stat().st_mtime_ns for path in written}
    store = prepare(tmp_path, index)
    assert all(path.stat().st_mtime_ns == mtime for path, mtime in made.items())
    fresh = prepare(tmp_path, index, "fresh")
    assert fresh.table.equals(store.table)
    assert all(np.array_equal(store.read(i), fresh.read(i)) for i in range(4))


def test_a_store_is_no_larger_than_the_uncompressed_source(tmp_path, folder):
    shape = (24, 96, 96)
    index = write_volumes(folder, 1, shape)
    store = prepare(tmp_path, index)
    assert store.table["store_bytes"][0].as_py() <= np.prod(shape) * 3  # int16 and a label map of bytes
    noise = np.random.default_rng(0).integers(-32768, 32767, shape).astype(np.int16)
    write_nifti(folder / "noise.nii", noise)
    row = index_row(folder, ["noise.nii"], modality="MR")
    noisy = prepare(tmp_path, index_of([row]), "noisy")
    assert noisy.table["store_bytes"][0].as_py() <= row["bytes"] * 1.01


def test_wrong_arguments(tmp_path, folder):
    index = write_volumes(folder, 1)
    for options, message in [
        ({"orientation": "RAX"}, "orientation is 'RAX'"),
        ({"spacing_mm": (1, 1)}, "three numbers above 0"),
        ({"spacing_mm": (1, 0, 1)}, "three numbers above 0"),
        ({"label_values": [300]}, "0 to 255"),
        ({"policy": "xray"}, "there is no intensity policy 'xray'"),
        ({"max_refused_fraction": 2}, "max_refused_fraction"),
    ]:
        with pytest.raises(ValueError, match=message):
            prepare(tmp_path, index, **options)
    with pytest.raises(ValueError, match="no column 'label_map'"):
        prepare(tmp_path, index.drop_columns(["label_map"]))


def test_a_store_of_images_says_that_it_has_no_volumes(tmp_path):
    table = write_arrays(tmp_path / "images", {"deep": random_array((20, 30))})
    store = prepare_store(table, tmp_path / "images", tmp_path / "s", reader=read_array, num_workers=0, progress=False)
    assert not store.has_volumes and not store.has_label_map(0) and store.label_values(0) == []
    for ask in (store.affine, store.foreground, store.source_grid):
        with pytest.raises(ValueError, match="no store of volumes"):
            ask(0)
    with pytest.raises(ValueError, match="has no label map"):
        store.read_label_map(0)


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("folder", "table", "modality", "labels"),
    [
        ("volumes_mr/msd_hippocampus", "msd_hippocampus.csv", "MR", [0, 1, 2]),
        ("volumes_ct/lidc_nodules", "lidc_nodules.csv", "CT", [0, 1]),
    ],
)
def test_real_volumes_are_prepared_within_a_minute(real_data, tmp_path, folder, table, modality, labels):
    root = real_data / folder
    index = build_volume_index(root, labels=root / table, progress=False)
    assert index["label_map"].null_count == 0
    place = index.schema.get_field_index("modality")
    index = index.set_column(place, "modality", pa.array([modality] * len(index)))
    started = time.monotonic()
    store = prepare_volumes(index, root, tmp_path / "store", label_values=labels, progress=False)
    assert time.monotonic() - started < 60
    with (root / table).open(newline="", encoding="utf-8") as file:
        listed = list(csv.DictReader(file))
    assert len(store) == len(listed) and not len(store.refused)
    assert {value for i in range(len(store)) for value in store.label_values(i)} == set(labels)
    raw = sum(int(np.prod(store.source_grid(i)[0])) * 4 for i in range(len(store)))
    assert sum(store.table["store_bytes"].to_pylist()) < raw
    for i in range(0, len(store), 97):
        source = read_volume(root / store.table["path"][i].as_py(), orientation="SPL").array
        low, high = store.table["store_limits"][i].as_py()
        expected = (np.clip(source, low, high) - low) / (high - low)
        np.testing.assert_allclose(store.read(i), expected, atol=1 / 65535 + 1e-6)
