# SPDX-License-Identifier: Apache-2.0
"""The index of volumes: what is found, refused, named, remembered and never leaked."""

from __future__ import annotations

import csv
import gzip
import logging
import os
import shutil
import signal
import sys
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydicom import dcmread
from scan_folders import VOLUME_SHAPE, label_voxels, rows_by_path, smooth_voxels, write_nifti
from synthetic_dicom import write_dicom
from synthetic_series import (
    CT,
    MR,
    SHAPE,
    SPACING,
    STEP_MM,
    item,
    random_voxels,
    write_enhanced,
    write_repeats,
    write_series,
)
from test_index import SECRETS

from monai_ssl.data import build_volume_index, describe_index, open_volumes, read_volume
from monai_ssl.data import volume_index as module
from monai_ssl.data.hashing import content_hash
from monai_ssl.data.scan import CRASHED
from monai_ssl.data.volume_scan import VOLUME_SCHEMA, scan_header, scan_unit


def index(root, output=None, **options):
    return build_volume_index(root, output, **{"num_workers": 0, "progress": False} | options)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two patients: a CT with a scout, an MR of three b-values, NIfTI of three and four axes, and other things."""
    root = tmp_path / "scans"
    study = {"PatientID": "P-1", "StudyInstanceUID": "1.2.3.1"}
    write_series(root / "ct", random_voxels(), series="1.2.3.1.1", **study, BodyPartExamined="CHEST")
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "SeriesInstanceUID": "1.2.3.1.2", "SOPClassUID": CT}
    for number in range(2):
        write_dicom(root / "ct" / f"scout{number}", smooth_voxels(0)[0], **study, **scout, InstanceNumber=number)
    bvalues = {"PatientID": "P-2", "StudyInstanceUID": "1.2.3.2", "Modality": "MR", "SOPClassUID": MR}
    write_repeats(root / "mr" / "dwi", lambda repeat, number: {"DiffusionBValue": 400.0 * repeat}, **bvalues)
    write_nifti(root / "one.nii.gz", smooth_voxels(1))
    write_nifti(root / "four.nii.gz", np.stack([smooth_voxels(2), smooth_voxels(3)]))
    Image.fromarray(np.arange(100, dtype=np.uint8).reshape(10, 10)).save(root / "shot.png")
    write_dicom(root / "chest.dcm", smooth_voxels(9)[0], SOPClassUID="1.2.840.10008.5.1.4.1.1.1.1", Modality="DX")
    write_nifti(root / "constant.nii", np.full(VOLUME_SHAPE, 7, np.int16))
    write_nifti(root / "nan.nii", np.full(VOLUME_SHAPE, np.nan, np.float32))
    write_nifti(root / "flat.nii", smooth_voxels(4, (1, 10, 8)))
    (root / "cut.nii.gz").write_bytes((root / "one.nii.gz").read_bytes()[:300])
    (root / "text.dcm").write_text("not DICOM")
    (root / "notes.txt").write_text("notes")
    (root / "README").write_text("a text without suffix")
    (root / ".hidden.nii").write_bytes(b"")
    return root


USABLE = {
    "ct": (SHAPE, "CT", "HU"),
    "mr/dwi#0": (SHAPE, "MR", None),
    "mr/dwi#1": (SHAPE, "MR", None),
    "mr/dwi#2": (SHAPE, "MR", None),
    "one.nii.gz": (VOLUME_SHAPE, None, None),
    "four.nii.gz#0": (VOLUME_SHAPE, None, None),
    "four.nii.gz#1": (VOLUME_SHAPE, None, None),
}
REFUSED = {
    "ct#1": "a localizer (scout) image",
    "shot.png": "a 2D image (PNG), not a volume",
    "chest.dcm": "a radiograph, not a slice",
    "constant.nii": "all its voxels have the same value",
    "nan.nii": "no finite voxel value",
    "flat.nii": "not a volume: fewer than two voxels along an axis",
    "cut.nii.gz": "the NIfTI header is broken or cut off",
    "text.dcm": "named like a DICOM file, but its content is something else",
}


@pytest.mark.parametrize("workers", [0, 2])
def test_every_volume_is_found_and_every_fault_named(folder, tmp_path, workers, caplog):
    with caplog.at_level(logging.INFO, "monai_ssl"):
        table = index(folder, tmp_path / "out" / "index.parquet", num_workers=workers)
    assert table.column_names == [*VOLUME_SCHEMA.names, "label_map", "group_id"]
    assert table.schema.field("label_map").type == table.schema.field("path").type
    rows = rows_by_path(table)
    assert table["path"].to_pylist() == sorted(rows) and len(rows) == len(table)
    found = {p: (tuple(r["shape"]), r["modality"], r["unit"]) for p, r in rows.items() if r["status"] == "ok"}
    assert found == USABLE
    assert {p: r["reason"] for p, r in rows.items() if r["status"] == "refused"} == REFUSED
    assert f"{len(USABLE)} volumes, {len(REFUSED)} refused" in caplog.text
    assert ".txt 1" in caplog.text and "no suffix 1" in caplog.text
    assert pq.read_table(tmp_path / "out" / "index.parquet").equals(table)
    text = describe_index(table)
    assert f"{len(USABLE)} volumes" in text and "shape: 6-8-8 x 10-16-16 x 8-12-12 voxels" in text
    assert "refused 1: a radiograph, not a slice" in text and "modality: MR 3, CT 1" in text


def test_a_row_says_what_the_volume_is(folder):
    rows = rows_by_path(index(folder, salt="s"))
    ct = rows["ct"]
    np.testing.assert_allclose(ct["spacing_mm"], (STEP_MM, *SPACING))
    assert (ct["orientation"], ct["oriented"], ct["kind"], ct["body_part"]) == ("SPL", True, "dicom", "CHEST")
    assert (ct["volume"], ct["min_slices"], ct["uneven"]) == (0, 3, "refuse")
    files = [folder / name for name in ct["files"]]
    assert [file.name for file in files] == [f"{number:03d}.dcm" for number in range(SHAPE[0])]
    assert ct["bytes"] == sum(file.stat().st_size for file in files)
    assert ct["mtime_ns"] == max(file.stat().st_mtime_ns for file in files)
    volume = read_volume(files)
    np.testing.assert_allclose(np.reshape(ct["affine"], (4, 4)), volume.affine)
    assert ct["content_hash"] == content_hash(volume.to_orientation("SPL").array)
    assert rows["ct#1"]["files"] == ["ct/scout0", "ct/scout1"] and rows["ct#1"]["volume"] is None
    assert rows["ct#1"]["patient"] == ct["patient"] and rows["ct#1"]["series"] != ct["series"]
    assert rows["mr/dwi#1"]["split_by"] == "DiffusionBValue=400.0"
    assert rows["four.nii.gz#1"]["split_by"] == "fourth_axis=1" and rows["four.nii.gz#1"]["volume"] == 1
    assert rows["four.nii.gz#1"]["files"] == ["four.nii.gz"]
    four = rows["four.nii.gz#0"], rows["four.nii.gz#1"]
    assert four[0]["group_id"] == four[1]["group_id"] != rows["one.nii.gz"]["group_id"], "one file, one group"
    groups = [rows[f"mr/dwi#{k}"]["group_id"] for k in range(3)]
    assert len(set(groups)) == 1 and groups[0] == rows["mr/dwi#0"]["patient"] != ct["group_id"]


def test_every_row_can_be_read_again_by_its_files_and_place(folder, tmp_path):
    """Also where frames of one file make several volumes."""
    group = lambda k: {"MREchoSequence": [item(EffectiveEchoTime=10.0 * (1 + k % 2))]}  # noqa: E731
    positions = [(0, 0, 3.0 * (k // 2)) for k in range(8)]
    write_enhanced(folder / "enhanced" / "a.dcm", smooth_voxels(5, (8, 6, 7)), positions, group)
    write_enhanced(folder / "enhanced" / "b.dcm", smooth_voxels(6, (8, 6, 7)), positions, group)
    rows = [row for row in index(folder).to_pylist() if row["status"] == "ok"]
    assert sum(row["path"].startswith("enhanced/") for row in rows) == 4
    for row in rows:
        files = [folder / name for name in row["files"]]
        found = open_volumes(files[0] if len(files) == 1 else files)
        assert row["kind"] != "dicom" or not found.refused, "no more files than it needs"
        volume = found.volumes[row["volume"]].read()
        assert content_hash(volume.to_orientation("SPL").array) == row["content_hash"], row["path"]


def test_one_study_has_one_hash_however_it_is_stored(tmp_path):
    root = tmp_path / "in"
    write_series(root / "dicom", random_voxels(), step=None)
    volume = read_volume(root / "dicom")
    write_nifti(root / "as_is.nii.gz", volume.array.astype(np.int16), volume.affine)
    write_nifti(root / "turned.nii", volume.array, volume.affine, codes="PIR")
    write_nifti(root / "other.nii", volume.array + 1, volume.affine)
    rows = rows_by_path(index(root))
    assert {rows[name]["content_hash"] for name in ("dicom", "as_is.nii.gz", "turned.nii")} == {
        rows["dicom"]["content_hash"]
    }
    assert rows["other.nii"]["content_hash"] != rows["dicom"]["content_hash"]


def test_series_are_put_together_across_folders(tmp_path):
    """As archives write them: one folder an object, or everything in one folder."""
    root = tmp_path / "in"
    paths = write_series(root, random_voxels(seed=1), series="1.2.9.1", prefix="x")
    for number, path in enumerate(paths):
        (root / "archive" / f"{number % 3}").mkdir(parents=True, exist_ok=True)
        path.rename(root / "archive" / f"{number % 3}" / f"{number:04X}")
    write_series(root, random_voxels(seed=2), series="1.2.9.2")
    write_series(root, random_voxels(seed=3), series="1.2.9.3", prefix="y")
    rows = rows_by_path(index(root))
    assert set(rows) == {".#0", ".#1", "archive"}
    assert all(row["status"] == "ok" and len(row["files"]) == SHAPE[0] for row in rows.values())


def test_rules_for_slices_are_passed_on_and_remembered(tmp_path):
    root, output = tmp_path / "in", tmp_path / "i.parquet"
    paths = write_series(root / "gap", random_voxels())
    paths[3].unlink()
    write_series(root / "thin", random_voxels(seed=1)[:2])
    rows = rows_by_path(index(root, output))
    assert "1 of 8 slices missing" in rows["gap"]["reason"] and "only 2 slices" in rows["thin"]["reason"]
    rows = rows_by_path(index(root, output, min_slices=2, uneven="resample"))
    assert [rows[name]["status"] for name in ("gap", "thin")] == ["ok", "ok"]
    assert rows["gap"]["shape"] == list(SHAPE) and rows["gap"]["uneven"] == "resample"
    assert rows["thin"]["min_slices"] == 2
    for wrong in ({"min_slices": 1}, {"uneven": "guess"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            index(root, **wrong)


def test_a_broken_slice_names_the_file_and_costs_its_volume_only(tmp_path):
    root = tmp_path / "in"
    paths = write_series(root / "cut", random_voxels())
    paths[2].write_bytes(paths[2].read_bytes()[:-100])
    write_series(root / "whole", random_voxels(seed=1))
    rows = rows_by_path(index(root))
    assert rows["whole"]["status"] == "ok"
    assert rows["cut"]["reason"].endswith("its volume of 8 slices is not whole (see 002.dcm)")


def test_nrrd_and_metaimage_are_volumes_too(tmp_path):
    itk = pytest.importorskip("itk")
    for name, seed in (("a.nrrd", 1), ("b.mha", 2)):
        itk.imwrite(itk.image_from_array(smooth_voxels(seed)), str(tmp_path / name))
    (tmp_path / "broken.mhd").write_text("nonsense")
    rows = rows_by_path(index(tmp_path))
    assert [rows[name]["kind"] for name in ("a.nrrd", "b.mha")] == ["itk", "itk"]
    assert rows["a.nrrd"]["shape"] == list(VOLUME_SHAPE)
    assert "itk cannot read it" in rows["broken.mhd"]["reason"]


def test_a_header_is_read_again_when_the_data_beside_it_changes(tmp_path, reads):
    """MetaImage and NRRD may keep the voxels in a file of their own."""
    itk = pytest.importorskip("itk")
    itk.imwrite(itk.image_from_array(smooth_voxels(1)), str(tmp_path / "a.mhd"))
    write_nifti(tmp_path / "b.nii", smooth_voxels(3))
    output = tmp_path / "out" / "i.parquet"
    first = rows_by_path(index(tmp_path, output))
    assert set(first) == {"a.mhd", "b.nii"}, "the file of voxels is no volume of its own"
    reads.clear()
    data = next(path for path in tmp_path.glob("a.*raw"))
    data.write_bytes(smooth_voxels(2).tobytes())
    second = rows_by_path(index(tmp_path, output))
    assert reads == [data.name, "unit of 1"]
    assert second["a.mhd"]["content_hash"] != first["a.mhd"]["content_hash"]
    assert second["b.nii"] == first["b.nii"]


def test_a_compressed_file_of_four_axes_is_decompressed_once(tmp_path, monkeypatch):
    write_nifti(tmp_path / "a.nii.gz", np.stack([smooth_voxels(seed) for seed in range(20)]))
    size = len(gzip.decompress((tmp_path / "a.nii.gz").read_bytes()))
    read = []
    real = zlib.decompressobj

    class Counting:
        def __init__(self, *args, **options):
            self.own = real(*args, **options)

        def decompress(self, *args, **options):
            data = self.own.decompress(*args, **options)
            read.append(len(data))
            return data

        def __getattr__(self, name):
            return getattr(self.own, name)

    monkeypatch.setattr(zlib, "decompressobj", Counting)
    assert len(index(tmp_path)) == 20
    assert size <= sum(read) < 3 * size, "the header, and then each entry in turn"


# ---- memory ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """What is read from now on: names of files whose headers are read, and of units that are decoded."""
    read: list[str] = []
    monkeypatch.setattr(
        module, "scan_header", lambda root, salt, file: read.append(file[0]) or scan_header(root, salt, file)
    )
    monkeypatch.setattr(
        module,
        "scan_unit",
        lambda root, rules, unit: read.append(f"unit of {len(unit.files)}") or scan_unit(root, rules, unit),
    )
    return read


def test_a_second_scan_reads_only_what_changed(folder, tmp_path, reads):
    output = tmp_path / "index.parquet"
    first = index(folder, output)
    assert "ct/000.dcm" in reads and f"unit of {SHAPE[0]}" in reads
    reads.clear()
    assert index(folder, output).equals(first) and not reads
    os.utime(folder / "one.nii.gz", ns=(1, 1))
    write_series(folder / "new", random_voxels(seed=8))
    (folder / "mr" / "dwi" / "a1000.dcm").unlink()
    second = rows_by_path(index(folder, output))
    new = [f"new/{number:03d}.dcm" for number in range(SHAPE[0])]
    assert sorted(reads) == sorted(
        [*new, "one.nii.gz", "unit of 1", f"unit of {SHAPE[0]}", f"unit of {SHAPE[0] * 3 - 1}"]
    )
    assert second["new"]["status"] == "ok" and second["one.nii.gz"]["mtime_ns"] == 1
    assert second["ct"] == rows_by_path(first)["ct"]


def test_another_salt_is_noticed(folder, tmp_path, reads):
    output = tmp_path / "index.parquet"
    one = rows_by_path(index(folder, output, salt="one"))
    reads.clear()
    other = rows_by_path(index(folder, output, salt="other"))
    assert "ct/000.dcm" in reads and one["ct"]["patient"] != other["ct"]["patient"]
    assert one["ct"]["content_hash"] == other["ct"]["content_hash"]


def test_an_interrupted_scan_goes_on(folder, tmp_path, monkeypatch):
    read = []

    def stop_after_three(root, rules, unit):
        if len(read) == 3:
            raise KeyboardInterrupt
        read.append(unit.path)
        return scan_unit(root, rules, unit)

    monkeypatch.setattr(module, "scan_unit", stop_after_three)
    with pytest.raises(KeyboardInterrupt):
        index(folder, tmp_path / "i.parquet")
    before = list(read)
    monkeypatch.setattr(module, "scan_unit", lambda *task: read.append(task[2].path) or scan_unit(*task))
    assert {path for path, row in rows_by_path(index(folder, tmp_path / "i.parquet")).items()} == {*USABLE, *REFUSED}
    assert len(read) == len(set(read)) and read[:3] == before


def crash_on_one(root, rules, unit):
    if unit.path == "one.nii.gz":
        os.kill(os.getpid(), signal.SIGKILL)
    return scan_unit(root, rules, unit)


@pytest.mark.skipif(sys.platform != "linux", reason="worker processes are forked on Linux only")
def test_a_crash_costs_only_its_volume(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "scan_unit", crash_on_one)
    rows = rows_by_path(index(folder, tmp_path / "i.parquet", num_workers=2))
    assert rows["one.nii.gz"]["reason"] == CRASHED
    assert {path for path, row in rows.items() if row["status"] == "ok"} == set(USABLE) - {"one.nii.gz"}
    monkeypatch.undo()  # the next scan tries it again
    assert rows_by_path(index(folder, tmp_path / "i.parquet"))["one.nii.gz"]["status"] == "ok"


# ---- privacy --------------------------------------------------------------------------------------------------------


def test_no_identifier_reaches_table_log_memory_or_error(tmp_path, caplog, capfd):
    root, out = tmp_path / "in", tmp_path / "out"
    uid = "1.2.826.0.1.3680043.9.7133.55"
    free = {**SECRETS, "StudyInstanceUID": uid, "BodyPartExamined": "ZEBROWSKI", "ImageType": ["QUENTIN", "X"]}
    write_series(root / "a", random_voxels(), series=f"{uid}.1", **free)
    write_repeats(root / "b", lambda repeat, number: {"ImageType": ["ZEBROWSKI", str(repeat)]}, **SECRETS)
    paths = write_series(root / "cut", random_voxels(seed=4), **free, SeriesDescription="Zebrowski head")
    paths[1].write_bytes(paths[1].read_bytes()[:-70])
    write_dicom(root / "single.dcm", smooth_voxels(1)[0], **SECRETS, Modality="ZEBROWSKI")
    liar = dcmread(paths[0])
    liar.add_new("ImagePositionPatient", "LO", ["Zebrowski^Quentin", "MRN-7654321", "3"])
    liar.save_as(root / "liar.dcm")
    with caplog.at_level(logging.DEBUG):
        table = index(root, out / "index.parquet", uneven="resample")
    streams = capfd.readouterr()
    spoken = caplog.text + streams.out + streams.err + describe_index(table) + str(table.to_pylist())
    stored = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    uncompressed = b"".join(repr(pq.read_table(path).to_pylist()).encode() for path in out.rglob("*.parquet"))
    for secret in [*SECRETS.values(), "Zebrowski", "ZEBROWSKI", "QUENTIN", uid, "1.2.3.4"]:
        assert secret not in spoken, secret
        assert secret.encode() not in stored + uncompressed, secret
    rows = rows_by_path(table)
    assert rows["a"]["patient"] == rows["b#0"]["patient"] and rows["a"]["body_part"] == "OTHER"
    assert len(list((out / "index.scan").rglob("*.parquet"))) >= 2


def test_placeholder_patients_are_nobody_and_a_study_keeps_together(tmp_path):
    for number, study in enumerate(("1.5.1", "1.5.1", "1.5.2")):
        write_series(tmp_path / str(number), random_voxels(seed=number), PatientID="ANON", StudyInstanceUID=study)
    rows = rows_by_path(index(tmp_path))
    assert [rows[str(number)]["patient"] for number in range(3)] == [None] * 3
    groups = [rows[str(number)]["group_id"] for number in range(3)]
    assert groups[0] == groups[1] != groups[2]


# ---- folders and tables -------------------------------------------------------------------------------------------


def test_folders_without_volumes(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder of volumes"):
        index(tmp_path / "absent")
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b").write_text("some text")
    with pytest.raises(ValueError, match=r"no volumes among its 2 files \(.txt 1, no suffix 1\)"):
        index(tmp_path)


def test_odd_names_and_an_index_in_the_folder(tmp_path):
    write_nifti(tmp_path / "Kopf, größer %20.nii", smooth_voxels(1))
    shutil.copy(tmp_path / "Kopf, größer %20.nii", os.fsencode(tmp_path) + b"/\xff\xfe.nii")
    first = index(tmp_path, tmp_path / "index.parquet")
    rows = rows_by_path(first)
    assert rows["Kopf, größer %20.nii"]["status"] == "ok"
    assert [row["reason"] for path, row in rows.items() if "udc" in path] == ["the file name is not valid UTF-8"]
    assert index(tmp_path, tmp_path / "index.parquet").equals(first)


def test_the_table_names_files_folders_or_any_slice(folder):
    (folder / "labels.csv").write_text(
        "file,patient_id,split,age\nct/003.dcm,A,train,50\nmr/dwi,B,test,60\nmr/dwi#1,B,test,61\n./four.nii.gz,C,val,70\n"
    )
    rows = rows_by_path(index(folder))
    assert (rows["ct"]["split"], rows["ct"]["age"]) == ("train", 50)
    assert [rows[f"mr/dwi#{k}"]["age"] for k in range(3)] == [60, 61, 60], "the nearest name wins"
    assert [rows[f"four.nii.gz#{k}"]["split"] for k in range(2)] == ["val", "val"]
    assert rows["one.nii.gz"]["split"] is None
    assert len({rows[path]["group_id"] for path in ("ct", "mr/dwi#0", "four.nii.gz#1")}) == 3


def test_rows_of_one_volume_that_differ_are_an_error(folder):
    (folder / "labels.csv").write_text("file,label\nct/003.dcm,a\nct/004.dcm,a\n")
    assert rows_by_path(index(folder))["ct"]["label"] == "a"
    (folder / "labels.csv").write_text("file,label\nct/003.dcm,a\nct/004.dcm,b\n")
    with pytest.raises(ValueError, match=r"labels\.csv: the rows of the files of ct differ; give one row"):
        index(folder)


def test_the_users_modality_counts_in_dicoms_words(folder):
    (folder / "labels.csv").write_text("file,modality\none.nii.gz, mri\nct,CT\n")
    rows = rows_by_path(index(folder))
    assert (rows["one.nii.gz"]["modality"], rows["ct"]["modality"], rows["mr/dwi#0"]["modality"]) == ("MR", "CT", "MR")


@pytest.fixture
def labelled(tmp_path) -> Path:
    """A DICOM series and NIfTI files with their label maps, one of which is stored with other axes."""
    root = tmp_path / "labelled"
    write_series(root / "ct", random_voxels())
    affine = read_volume(root / "ct").affine
    write_nifti(root / "maps" / "ct.nii.gz", label_voxels(shape=SHAPE), affine, codes="ARI")
    lines = ["file,label_map", "ct,maps/ct.nii.gz"]
    for number in range(3):
        write_nifti(root / f"{number}.nii", smooth_voxels(number))
        write_nifti(root / "maps" / f"{number}.nii", label_voxels(number))
        lines.append(f"{number}.nii,./maps/{number}.nii")
    (root / "labels.csv").write_text("\n".join(lines))
    return root


def test_label_maps_are_no_volumes(labelled, caplog):
    rows = rows_by_path(index(labelled))
    assert {path: row["label_map"] for path, row in rows.items()} == {
        "ct": "maps/ct.nii.gz",
        **{f"{number}.nii": f"maps/{number}.nii" for number in range(3)},
    }
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert "taken for images" not in caplog.text
    (labelled / "labels.csv").unlink()
    assert len(index(labelled)) == 8
    assert "4 volumes are named like label maps and taken for images" not in caplog.text
    (labelled / "maps").rename(labelled / "labelsTr")
    index(labelled)
    assert "4 volumes are named like label maps and taken for images, for instance labelsTr/0.nii" in caplog.text


def test_label_maps_of_another_grid_are_refused_and_looked_at_again(labelled, tmp_path):
    maps, output = labelled / "maps", tmp_path / "i.parquet"
    good = nib.load(maps / "1.nii").affine[:, [2, 1, 0, 3]]
    write_nifti(maps / "0.nii", label_voxels(shape=(6, 10, 9)))
    moved = good.copy()
    moved[2, 3] += 1.0
    write_nifti(maps / "1.nii", label_voxels(1), moved)
    (maps / "2.nii").unlink()
    rows = rows_by_path(index(labelled, output))
    assert rows["0.nii"]["reason"] == "label map of another grid: shape 6 x 10 x 9 against 6 x 10 x 8 of the image"
    assert rows["1.nii"]["reason"] == "label map of another grid: its corners lie up to 1 mm from those of the image"
    assert rows["2.nii"]["reason"] == "the label map that the table names is not there"
    assert rows["ct"]["status"] == "ok"
    write_nifti(maps / "0.nii", label_voxels())
    write_nifti(maps / "1.nii", label_voxels(1), good + 1e-5)
    (maps / "2.nii").write_bytes(b"nothing")
    rows = rows_by_path(index(labelled, output))
    assert [rows[f"{number}.nii"]["status"] for number in range(3)] == ["ok", "ok", "refused"]
    assert rows["2.nii"]["reason"].startswith("the label map cannot be used: named like a NIFTI file")


def test_label_maps_that_are_all_missing_stop_before_the_scan(labelled, reads):
    shutil.rmtree(labelled / "maps")
    with pytest.raises(ValueError, match=r"labels\.csv: none of its 4 label maps is in .*, for instance maps/0\.nii"):
        index(labelled)
    assert not reads


# ---- real data ------------------------------------------------------------------------------------------------------


@pytest.mark.realdata
def test_every_real_series_is_in_the_index_as_its_table_says(real_data, tmp_path):
    from test_series import EXPECTED

    for parent in ("dicom_zoo/series", "volumes_ct/dicom_series", "volumes_mr/dicom_series"):
        if not (real_data / parent).is_dir():
            continue
        rows = index(real_data / parent, num_workers=None).to_pylist()
        for name, (shapes, reasons) in EXPECTED.items():
            if not name.startswith(f"{parent}/"):
                continue
            mine = [row for row in rows if row["files"][0].startswith(f"{Path(name).name}/")]
            assert [tuple(row["shape"]) for row in mine if row["status"] == "ok"] == shapes
            for reason, files in reasons.items():
                assert sum(len(row["files"]) for row in mine if reason in (row["reason"] or "")) == files
            listed = {file for row in mine for file in row["files"]}
            assert listed == {f"{Path(name).name}/{path.name}" for path in (real_data / name).iterdir()}


@pytest.mark.realdata
@pytest.mark.parametrize(("name", "volumes"), [("volumes_mr/msd_hippocampus", 208), ("volumes_ct/lidc_nodules", 654)])
def test_real_labelled_folders_keep_split_and_label_maps(real_data, tmp_path, name, volumes):
    folder = real_data / name
    table = index(folder, tmp_path / "i.parquet", num_workers=None)
    assert len(table) == volumes and set(table["status"].to_pylist()) == {"ok"}
    assert not table["label_map"].null_count and not table["split"].null_count
    with next(folder.glob("*.csv")).open() as file:
        given = {row["image"]: (row["label"], row["split"]) for row in csv.DictReader(file)}
    mine = zip(table["path"].to_pylist(), table["label_map"].to_pylist(), table["split"].to_pylist(), strict=True)
    assert {path: (label, split) for path, label, split in mine} == given


@pytest.mark.realdata
def test_the_real_zoo_of_files_is_indexed_without_a_surprise(real_data):
    table = index(real_data / "dicom_zoo" / "files", num_workers=None)
    reasons = [row["reason"] for row in table.to_pylist() if row["status"] == "refused"]
    assert not [reason for reason in reasons if "unexpected" in reason]
    assert [path for path in table["path"].to_pylist() if "XA10" in path]
