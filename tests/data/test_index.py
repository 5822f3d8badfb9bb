# SPDX-License-Identifier: Apache-2.0
"""The index: what is found, refused, remembered and never leaked."""

from __future__ import annotations

import logging
import os
import signal
import stat
import subprocess
import sys
import time
import traceback
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydicom.uid import JPEG2000Lossless
from synthetic_dicom import make_dicom, write_dicom

from monai_ssl.data import UnreadableImageError, build_index, describe_index, parallel, read_radiograph
from monai_ssl.data import index as index_module
from monai_ssl.data import scan as scan_module
from monai_ssl.data.hashing import content_hash, hash_identifier, load_salt, perceptual_hash
from monai_ssl.data.parallel import WorkerCrash, crash_safe_map
from monai_ssl.data.scan import CRASHED, FACTS_SCHEMA


def picture(seed, shape=(40, 50), dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, 200, shape).astype(dtype)


@pytest.fixture
def folder(tmp_path):
    """A folder with one of each kind, and some that are no images."""
    root = tmp_path / "images"
    write_dicom(
        root / "a" / "IM0001", picture(0, dtype=np.uint16), bits=12, ViewPosition="PA", BodyPartExamined="CHEST"
    )
    write_dicom(root / "a" / "1.2.840.1", picture(1, dtype=np.uint16), PhotometricInterpretation="MONOCHROME1")
    Image.fromarray(picture(2)).save(root / "b.png")
    Image.fromarray(picture(3)).save(root / "c.jpg")
    Image.fromarray(picture(4, dtype=np.uint16)).save(root / "d.tiff")
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.eye(4)), root / "e.nii.gz")
    write_dicom(root / "report.dcm", None, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11")
    (root / "broken.dcm").write_bytes((root / "a" / "IM0001").read_bytes()[:-50])
    (root / "notes.txt").write_text("notes")
    (root / "README").write_text("a text without suffix")
    (root / ".hidden.png").write_bytes(b"")
    return root


def rows_of(table):
    return {row["path"]: row for row in table.to_pylist()}


@pytest.mark.parametrize("workers", [0, 2])
def test_every_kind_is_found_and_every_fault_named(folder, tmp_path, workers, caplog):
    with caplog.at_level(logging.INFO, "monai_ssl"):
        table = build_index(folder, tmp_path / "out" / "index.parquet", num_workers=workers)
    assert table.column_names == [*FACTS_SCHEMA.names, "group_id"]
    rows = rows_of(table)
    kinds = {path: row["kind"] for path, row in rows.items() if row["status"] == "ok"}
    assert kinds == {
        **{"a/1.2.840.1": "dicom", "a/IM0001": "dicom", "b.png": "png", "c.jpg": "jpeg"},
        **{"d.tiff": "tiff", "e.nii.gz": "nifti"},
    }
    assert table["path"].to_pylist() == sorted(rows)
    assert rows["report.dcm"]["reason"] == "no pixel data (Basic Text SR Storage)"
    assert "shorter than the header says" in rows["broken.dcm"]["reason"]
    radiograph = rows["a/IM0001"]
    assert (radiograph["rows"], radiograph["columns"], radiograph["bits_stored"]) == (40, 50, 12)
    assert (radiograph["view"], radiograph["body_part"], radiograph["modality"]) == ("PA", "CHEST", "CR")
    assert radiograph["bytes"] == (folder / "a" / "IM0001").stat().st_size
    assert rows["a/1.2.840.1"]["photometric"] == "MONOCHROME1"
    assert rows["e.nii.gz"]["frames"] == 6 and rows["e.nii.gz"]["perceptual_hash"] is None
    assert all(len(row["content_hash"]) == 32 for row in rows.values() if row["status"] == "ok")
    assert "6 images, 2 refused" in caplog.text and ".txt 1" in caplog.text and "no suffix 1" in caplog.text
    assert pq.read_table(tmp_path / "out" / "index.parquet").equals(table)
    assert "refused 1: no pixel data" in describe_index(table) and "dicom 2" in describe_index(table)


def test_second_scan_reads_only_what_changed(folder, tmp_path, monkeypatch):
    read = []
    real = scan_module.scan_file
    monkeypatch.setattr(
        index_module, "scan_file", lambda root, salt, file: read.append(file[0]) or real(root, salt, file)
    )
    output = tmp_path / "index.parquet"
    first = build_index(folder, output, num_workers=0)
    assert len(read) == 9  # the text without suffix is opened too, notes.txt is not
    read.clear()
    assert build_index(folder, output, num_workers=0).equals(first) and read == []

    Image.fromarray(picture(9)).save(folder / "b.png")
    os.utime(folder / "b.png", ns=(1, 1))
    (folder / "c.jpg").unlink()
    Image.fromarray(picture(10)).save(folder / "new.png")
    second = build_index(folder, output, num_workers=0)
    assert sorted(read) == ["b.png", "new.png"]
    assert set(rows_of(second)) == set(rows_of(first)) - {"c.jpg"} | {"new.png"}
    assert rows_of(second)["b.png"]["content_hash"] != rows_of(first)["b.png"]["content_hash"]


def test_another_salt_or_other_decoders_are_noticed(folder, tmp_path, monkeypatch):
    from monai_ssl.data import scan_cache

    read = []
    real = scan_module.scan_file
    monkeypatch.setattr(
        index_module, "scan_file", lambda root, salt, file: read.append(file[0]) or real(root, salt, file)
    )
    output = tmp_path / "index.parquet"
    one = build_index(folder, output, num_workers=0, salt="one")
    read.clear()
    other = build_index(folder, output, num_workers=0, salt="other")
    assert len(read) == 9
    assert rows_of(one)["a/IM0001"]["patient"] != rows_of(other)["a/IM0001"]["patient"]
    read.clear()
    monkeypatch.setattr(scan_cache, "decoder_signature", lambda: "a new decoder")
    build_index(folder, output, num_workers=0, salt="other")
    assert sorted(read) == ["broken.dcm", "report.dcm"]


def test_an_interrupted_scan_goes_on(folder, tmp_path, monkeypatch):
    read = []
    real = scan_module.scan_file

    def stop_after_five(root, salt, file):
        if len(read) == 5:
            raise KeyboardInterrupt
        read.append(file[0])
        return real(root, salt, file)

    monkeypatch.setattr(index_module, "scan_file", stop_after_five)
    with pytest.raises(KeyboardInterrupt):
        build_index(folder, tmp_path / "index.parquet", num_workers=0)
    assert not (tmp_path / "index.parquet").exists()
    before = list(read)
    monkeypatch.setattr(
        index_module, "scan_file", lambda root, salt, file: read.append(file[0]) or real(root, salt, file)
    )
    table = build_index(folder, tmp_path / "index.parquet", num_workers=0)
    assert len(read) == 9 and len(set(read)) == 9 and read[:5] == before
    assert len(table) == 8


def crash_on_b(root, salt, file):
    if file[0] == "b.png":
        os.kill(os.getpid(), signal.SIGKILL)
    return scan_module.scan_file(root, salt, file)


@pytest.mark.skipif(sys.platform != "linux", reason="worker processes are forked on Linux only")
def test_a_crash_in_one_file_costs_only_that_file(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(index_module, "scan_file", crash_on_b)
    output = tmp_path / "index.parquet"
    rows = rows_of(build_index(folder, output, num_workers=2))
    assert rows["b.png"]["reason"] == CRASHED
    assert sum(row["status"] == "ok" for row in rows.values()) == 5
    monkeypatch.undo()  # the next scan tries it again
    assert rows_of(build_index(folder, output, num_workers=0))["b.png"]["status"] == "ok"


def crash_once(item):
    folder, number = item
    if number == 3 and not (folder / "crashed").exists():
        (folder / "crashed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


@pytest.mark.skipif(sys.platform != "linux", reason="worker processes are forked on Linux only")
def test_crash_safe_map_tries_again_alone(tmp_path):
    found = dict(crash_safe_map(crash_once, [(tmp_path, k) for k in range(20)], num_workers=2, chunk_size=3))
    assert isinstance(found.pop(7), WorkerCrash)
    assert found == {k: k * k for k in range(20) if k != 7}


def raise_on_two(item):
    if item == 2:
        raise ValueError("two")
    return item


def test_crash_safe_map_passes_errors_on():
    with pytest.raises(ValueError, match="two"):
        list(crash_safe_map(raise_on_two, range(5), num_workers=2, chunk_size=1))
    with pytest.raises(ValueError, match="num_workers is -1"):
        list(crash_safe_map(raise_on_two, [1], num_workers=-1))
    assert list(crash_safe_map(raise_on_two, [], num_workers=2)) == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_do_not_outlive_a_killed_parent():
    code = """if True:
        import importlib.util, os, sys, time
        spec = importlib.util.spec_from_file_location("parallel", sys.argv[1])  # without the package: starts at once
        parallel = sys.modules["parallel"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(parallel)
        def slow(item):
            print(os.getpid(), flush=True)
            time.sleep(1)
        list(parallel.crash_safe_map(slow, range(4), num_workers=1, chunk_size=1))
    """
    process = subprocess.Popen([sys.executable, "-c", code, parallel.__file__], stdout=subprocess.PIPE, text=True)
    worker = int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()
    for _ in range(60):
        try:
            if Path(f"/proc/{worker}/stat").read_text().split()[2] == "Z":
                return
        except OSError:
            return
        time.sleep(0.2)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker is still there")


# ---- privacy --------------------------------------------------------------------------------------------------------

SECRETS = {
    "PatientName": "Zebrowski^Quentin",
    "PatientID": "MRN-7654321",
    "PatientBirthDate": "19310417",
    "StudyDate": "20190203",
    "StudyDescription": "Thorax Zebrowski follow-up",
    "AccessionNumber": "ACC998877",
    "InstitutionName": "St. Elsewhere Hospital",
    "ReferringPhysicianName": "Caligari^Dr",
    "PatientComments": "neighbour of the mayor",
    "StudyID": "STUDY4711",
}


def test_no_identifier_reaches_table_log_cache_or_error(tmp_path, caplog, capfd):
    root, out = tmp_path / "in", tmp_path / "out"
    write_dicom(root / "plain.dcm", picture(0, dtype=np.uint16), **SECRETS)
    # Free text where only codes belong, and values that provoke pydicom's warnings, which quote them.
    write_dicom(root / "codes.dcm", picture(1), **SECRETS, BodyPartExamined="ZEBROWSKI", ViewPosition="QUENTIN")
    liar = make_dicom(picture(2, dtype=np.uint16), **SECRETS, Modality="ZEBROWSKI")
    liar.add_new("WindowCenter", "LO", "Zebrowski^Quentin")
    liar.add_new("NumberOfFrames", "LO", "MRN-7654321")
    liar.save_as(root / "liar.dcm", enforce_file_format=True)
    compressed = make_dicom(picture(3, dtype=np.uint16), **SECRETS)
    compressed.compress(JPEG2000Lossless)
    compressed.PixelData = compressed.PixelData[:-60] + b"Zebrowski" + compressed.PixelData[-51:]
    compressed.save_as(root / "stream.dcm", enforce_file_format=True)
    private = write_dicom(root / "uid.dcm", picture(4), **SECRETS, SOPClassUID="1.2.826.0.1.3680043.9.7133.1.1")
    (root / "cut.dcm").write_bytes(private.read_bytes()[:500])
    uids = [str(make_dicom(picture(0)).StudyInstanceUID)[:20], "1.2.826.0.1.3680043"]

    with caplog.at_level(logging.DEBUG):
        table = build_index(root, out / "index.parquet", num_workers=0)
    streams = capfd.readouterr()
    tracebacks = ""
    for path in root.iterdir():
        try:
            read_radiograph(path)
        except UnreadableImageError as error:
            tracebacks += "".join(traceback.format_exception(error))
    assert tracebacks.count("UnreadableImageError: ") >= 2
    spoken = tracebacks + caplog.text + streams.out + streams.err + describe_index(table) + str(table.to_pylist())
    stored = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    uncompressed = b"".join(repr(pq.read_table(path).to_pylist()).encode() for path in out.rglob("*.parquet"))
    for secret in [*SECRETS.values(), "Zebrowski", "ZEBROWSKI", "QUENTIN", *uids]:
        assert secret not in spoken, secret
        assert secret.encode() not in stored + uncompressed, secret
    rows = rows_of(table)
    assert rows["codes.dcm"]["body_part"] == rows["codes.dcm"]["view"] == rows["liar.dcm"]["modality"] == "OTHER"
    assert rows["liar.dcm"]["reason"] == "NumberOfFrames is not a number"
    assert rows["plain.dcm"]["patient"] == rows["codes.dcm"]["patient"] != rows["plain.dcm"]["study"]


def test_salt_is_private_and_kept(folder, tmp_path):
    first = rows_of(build_index(folder, tmp_path / "index.parquet", num_workers=0))
    salt_file = tmp_path / "index.salt"
    assert stat.S_IMODE(salt_file.stat().st_mode) == 0o600
    salt = load_salt(salt_file)
    assert len(salt) == 32
    assert first["a/IM0001"]["patient"] == hash_identifier(" P-1 ", salt, "patient")
    assert hash_identifier("P-1", salt, "study") != hash_identifier("P-1", salt, "patient")
    assert hash_identifier("", salt, "patient") is None and hash_identifier(None, salt, "patient") is None
    other = rows_of(build_index(folder, tmp_path / "other.parquet", num_workers=0))
    assert other["a/IM0001"]["patient"] != first["a/IM0001"]["patient"]
    salt_file.write_text("nonsense")
    with pytest.raises(ValueError, match="holds no salt"):
        build_index(folder, tmp_path / "index.parquet", num_workers=0)
    with pytest.raises(ValueError, match="salt is empty"):
        build_index(folder, num_workers=0, salt="")


def test_placeholder_patients_are_nobody(tmp_path):
    for number, patient in enumerate(("ANONYMOUS", "", "Anon", "real-1")):
        write_dicom(tmp_path / "in" / f"{number}.dcm", picture(number), PatientID=patient)
    table = build_index(tmp_path / "in", num_workers=0)
    assert [row is None for row in table["patient"].to_pylist()] == [True, True, True, False]
    assert len(set(table["group_id"].to_pylist())) == 4 and None not in table["group_id"].to_pylist()


# ---- folders --------------------------------------------------------------------------------------------------------


def test_folders_without_images(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        build_index(tmp_path / "absent")
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b").write_text("some text")
    with pytest.raises(ValueError, match=r"no images among its 2 files \(.txt 1, no suffix 1\)"):
        build_index(tmp_path, num_workers=0)


def test_links_loops_and_odd_names(folder, tmp_path):
    (folder / "again").symlink_to(folder)
    (folder / "gone.png").symlink_to(folder / "absent.png")
    (folder / "link.png").symlink_to(folder / "b.png")
    Image.fromarray(picture(0)).save(folder / "Lunge, größer %20.png")
    odd = os.fsencode(folder) + b"/\xff\xfe.png"
    with open(odd, "wb") as file:
        file.write((folder / "b.png").read_bytes())
    rows = rows_of(build_index(folder, tmp_path / "i.parquet", num_workers=2))
    assert rows["link.png"]["content_hash"] == rows["b.png"]["content_hash"]
    assert rows["Lunge, größer %20.png"]["status"] == "ok"
    assert [row["reason"] for path, row in rows.items() if "udc" in path] == ["the file name is not valid UTF-8"]
    assert not any(path.startswith("again/") for path in rows)


def test_index_may_lie_in_the_folder_itself(folder):
    first = build_index(folder, folder / "index.parquet", num_workers=0)
    second = build_index(folder, folder / "index.parquet", num_workers=0)
    assert second.equals(first)


def test_claims_that_fit_no_column_do_not_end_the_scan(tmp_path):
    write_dicom(tmp_path / "a.dcm", picture(0), NumberOfFrames="100000000000")
    row = build_index(tmp_path, num_workers=0).to_pylist()[0]
    assert row["frames"] is None and "shorter than the header says" in row["reason"]


def test_truncated_volumes_are_refused(tmp_path):
    volume = np.random.default_rng(0).integers(0, 999, (8, 9, 10)).astype(np.int16)
    for name in ("a.nii", "a.nii.gz"):
        nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) * 3 // 4])
    reasons = build_index(tmp_path, num_workers=0)["reason"].to_pylist()
    assert "data shorter than the header says (1344 of 1792 bytes)" in reasons
    assert "the compressed file is broken or cut off" in reasons


# ---- hashes ---------------------------------------------------------------------------------------------------------


def test_content_hash_is_of_pixels_not_files(tmp_path):
    pixels = picture(0, dtype=np.uint16)
    write_dicom(tmp_path / "a.dcm", pixels)
    data = make_dicom(pixels, PatientID="another")
    data.compress(JPEG2000Lossless)
    data.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    Image.fromarray(pixels).save(tmp_path / "c.png")
    assert len(set(build_index(tmp_path, num_workers=0)["content_hash"].to_pylist())) == 1
    assert content_hash(pixels) != content_hash(pixels.reshape(50, 40))


def smooth_picture(seed, shape=(200, 240)):
    from scipy.ndimage import gaussian_filter

    image = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 6)
    return (image - image.min()) / np.ptp(image)


def bits_between(a, b):
    return bin(int(a, 16) ^ int(b, 16)).count("1")


def test_perceptual_hash_keeps_to_copies_and_leaves_others():
    images = [smooth_picture(seed) for seed in range(20)]
    hashes = [perceptual_hash(image) for image in images]
    assert min(bits_between(a, b) for i, a in enumerate(hashes) for b in hashes[:i]) > 10
    for image, reference in zip(images, hashes, strict=True):
        small = np.asarray(Image.fromarray(image.astype(np.float32)).resize((120, 100), Image.Resampling.BOX))
        assert bits_between(perceptual_hash(small), reference) <= 6
        assert bits_between(perceptual_hash(0.5 * image + 0.2), reference) <= 2
        assert bits_between(perceptual_hash(image**0.8), reference) <= 6
    assert perceptual_hash(np.full((50, 60), 0.7)) == "0" * 16
    assert len(hashes[0]) == 16


def test_table_schema_has_stable_types(folder):
    table = build_index(folder, num_workers=0)
    for field in FACTS_SCHEMA:
        assert table.schema.field(field.name).type == field.type
    assert table.schema.field("group_id").type == pa.string()
