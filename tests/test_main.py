# SPDX-License-Identifier: Apache-2.0
"""The verbs, on tiny folders."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from toy_radiographs import make_toy_radiographs

from monai_ssl.__main__ import VERBS, main
from monai_ssl.data import ImageStore
from monai_ssl.data.example_dicom import radiograph_dataset
from monai_ssl.data.phantom_patient import draw_patient
from monai_ssl.data.phantom_radiograph import render_radiograph
from monai_ssl.networks import build_encoder
from monai_ssl.weights import save_encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Four PNG files (two of them equal), a DICOM file, a broken file and labels."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for number in range(3):
        coarse = Image.fromarray(random.integers(0, 256, (6, 5), dtype=np.uint8))
        coarse.resize((50, 60), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    (folder / "copy.png").write_bytes((folder / "0.png").read_bytes())
    patient = draw_patient(0, 0)
    dataset = radiograph_dataset(render_radiograph(patient, 0, 0, 0, 64), patient, "SECRET-7", 0, 0, 0)
    dataset.PatientName = "Secret^Name"
    dataset.StudyDate = "19991231"
    dataset.save_as(folder / "chest.dcm", enforce_file_format=True)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    rows = ["0.png,P0,test", "1.png,P1,train", "2.png,P2,train", "copy.png,P0,test", "chest.dcm,P1,train"]
    (folder / "labels.csv").write_text(
        "file,patient_id,split\n" + "\n".join(rows).replace("P1,train", "P1,train") + "\n"
    )
    return folder


def succeed(capsys, *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def fail(capsys, *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "Traceback" not in error
    return error


def test_every_verb_explains_each_of_its_flags(capsys):
    for verb in VERBS:
        usage, _, text = succeed(capsys, verb, "--help").partition("\n\n")
        flags = [word.strip("[]").removeprefix("--") for word in usage.split() if word.startswith("[--")]
        missing = [flag for flag in flags if not any(line.startswith(f"{flag} ") for line in text.splitlines())]
        assert not missing, f"{verb}: {missing}"


def test_index_tells_what_was_found_and_refused(capsys, folder, tmp_path):
    table = tmp_path / "new" / "index.parquet"
    out = succeed(capsys, "index", folder, "--output", table, "--num_workers", 0)
    assert "5 images, 1 refused" in out and "kind: png 4, dicom 1" in out and str(table) in out
    assert pq.read_table(table).num_rows == 6
    described = succeed(capsys, "describe", table)
    assert "5 images, 1 refused" in described and "perceptual_hash" in described


def test_prepare_makes_a_store_that_describe_knows(capsys, folder, tmp_path):
    out = succeed(capsys, "prepare", folder, tmp_path / "a", "--max_side", 32, "--num_workers", 0)
    assert "4 images, 2 refused" in out
    store = ImageStore(tmp_path / "a" / "store")
    assert max(max(store.shape(i)) for i in range(len(store))) == 32
    described = succeed(capsys, "describe", tmp_path / "a")
    assert out.splitlines()[0] in described and "split: train 3, test 1" in described
    assert described == succeed(capsys, "describe", tmp_path / "a" / "store")
    assert "5 images, 1 refused" in succeed(
        capsys, "prepare", folder, tmp_path / "b", "--keep_duplicates", "--num_workers", 0
    )


def test_describe_an_image_without_identifiers(capsys, folder):
    out = succeed(capsys, "describe", folder / "chest.dcm")
    assert "64 rows x 64 columns" in out and "modality         DX" in out
    assert "shown range" in out and " mm" in out
    assert "bits stored      8" in succeed(capsys, "describe", folder / "0.png")
    for secret in ("Secret", "Name", "SECRET-7", "1999"):
        assert secret not in out


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    """Ten MR series, NIfTI files of three and four axes with a label map, and a table."""
    folder = tmp_path_factory.mktemp("scans")
    random = np.random.default_rng(0)
    lines = ["file,label_map,patient_id,modality"]
    for number in range(10):
        _write_series(folder / f"s{number}", random.integers(0, 900, (4, 12, 10)).astype(np.int16), f"SECRET-{number}")
        lines.append(f"s{number},,P{number},")
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    nib.save(nib.Nifti1Image(random.integers(0, 9, (10, 12, 5)).astype(np.int16), affine), folder / "a.nii.gz")
    nib.save(nib.Nifti1Image(np.eye(12, dtype=np.uint8)[:10, :, None].repeat(5, 2), affine), folder / "a_seg.nii.gz")
    nib.save(nib.Nifti1Image(random.integers(0, 9, (6, 7, 5, 8)).astype(np.int16), affine), folder / "four.nii.gz")
    lines += ["a.nii.gz,a_seg.nii.gz,P10,MR", "four.nii.gz,,P11,MR"]
    (folder / "labels.csv").write_text("\n".join(lines))
    return folder


def _write_series(folder: Path, voxels: np.ndarray, patient: str) -> None:
    folder.mkdir()
    for number, pixels in enumerate(voxels):
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = MRImageStorage
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        data.PatientID, data.PatientName, data.Modality = patient, "Secret^Name", "MR"
        data.StudyInstanceUID = data.SeriesInstanceUID = f"1.2.3.{patient[-1]}"
        data.Rows, data.Columns = pixels.shape
        data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, 4 * number], [1, 0, 0, 0, 1, 0]
        data.PixelSpacing, data.SliceThickness, data.InstanceNumber = [2, 2], 4, number
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, 1
        data.PixelData = pixels.tobytes()
        data.save_as(folder / str(number), enforce_file_format=True)


def test_index_and_prepare_volumes(capsys, scans, tmp_path):
    out = succeed(capsys, "index", scans, "--spatial_dims", 3, "--output", tmp_path / "i.parquet", "--num_workers", 0)
    assert "19 volumes, 0 refused" in out and "kind: dicom 10, nifti 9" in out and "with a label map: 1" in out
    described = succeed(capsys, "describe", tmp_path / "i.parquet")
    assert "19 volumes, 0 refused" in described and "shape: 4-4-5 x 7-12-12 x 6-10-10 voxels" in described
    flags = ("--spatial_dims", 3, "--spacing_mm", "4,2,2", "--policy", "mr", "--num_workers", 0)
    out = succeed(capsys, "prepare", scans, tmp_path / "a", *flags)
    assert "19 volumes, 0 refused" in out and "spacing: 4 x 2 x 2 mm (resampled)" in out
    described = succeed(capsys, "describe", tmp_path / "a")
    assert described.startswith(out.splitlines()[0]) and "  split: " in described and described.count("spacing:") == 1


def test_flags_of_the_other_dimension_are_refused(capsys, scans, tmp_path):
    assert "--max_side is for --spatial_dims 2" in fail(
        capsys, "prepare", scans, tmp_path / "s", "--spatial_dims", 3, "--max_side", 9
    )
    assert "--policy is for --spatial_dims 3" in fail(capsys, "prepare", scans, tmp_path / "s", "--policy", "mr")
    assert "--spacing_mm is three numbers such as 3,1,1, not '3;1'" in fail(
        capsys, "prepare", scans, tmp_path / "s", "--spatial_dims", 3, "--spacing_mm", "3;1"
    )
    assert "use 2 for images, 3 for volumes" in fail(capsys, "index", scans, "--spatial_dims", 4)
    assert not (tmp_path / "s").exists()


def test_an_index_of_images_tells_when_they_are_volumes(capsys, scans, folder, tmp_path):
    hint = "--spatial_dims 3 puts them together"
    out = succeed(capsys, "index", scans / "s0", "--output", tmp_path / "i.parquet", "--num_workers", 0)
    assert hint in out and "4 images" in out
    assert hint not in succeed(capsys, "index", folder, "--output", tmp_path / "j.parquet", "--num_workers", 0)


def test_describe_volumes_without_identifiers(capsys, scans, tmp_path):
    out = succeed(capsys, "describe", scans / "s3")
    assert "1 volume\n" in out and "4 x 12 x 10 voxels" in out and "4 x 2 x 2 mm" in out
    assert "orientation      SPL" in out and "modality         MR" in out and "values           " in out
    assert "Secret" not in out and "SECRET" not in out
    out = succeed(capsys, "describe", scans / "four.nii.gz")
    assert "8 volumes" in out and "volume 5" in out and "... and 2 more" in out and "modality         not stated" in out
    out = succeed(capsys, "describe", scans / "a.nii.gz")
    assert "5 x 12 x 10 voxels" in out and "orientation      SAR" in out and "percentiles      1 % 0" in out
    (tmp_path / "thin").mkdir()
    (tmp_path / "thin" / "0").write_bytes((scans / "s3" / "0").read_bytes())
    error = fail(capsys, "describe", tmp_path / "thin")
    assert "its 1 DICOM files make none (only 1 slice; a volume needs 3 of the same series)" in error


def test_describe_weights(capsys, tmp_path):
    encoder = build_encoder("resnet10", widen_factor=0.125)
    save_encoder(encoder, tmp_path / "encoder.safetensors", {"method": "C2L", "images_seen": 640})
    out = succeed(capsys, "describe", tmp_path / "encoder.safetensors")
    assert "pretrained with C2L" in out and "640" in out
    assert out == succeed(capsys, "describe", tmp_path), "a run's folder is described by its encoder"


def test_describe_what_is_nothing_of_ours(capsys, folder, tmp_path):
    assert f"python -m monai_ssl index {folder}" in fail(capsys, "describe", folder)
    assert "no image, no index" in fail(capsys, "describe", folder / "labels.csv")
    assert "no such file or folder" in fail(capsys, "describe", tmp_path / "nothing")
    assert "broken.png: " in fail(capsys, "describe", folder / "broken.png")
    (tmp_path / "x.parquet").write_bytes(b"no table")
    assert "not a readable Parquet file" in fail(capsys, "describe", tmp_path / "x.parquet")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    assert "cut.safetensors" in fail(capsys, "describe", tmp_path / "cut.safetensors")


def test_export_to_nnunet(capsys, tmp_path):
    encoder = build_encoder("dynunet", 3, filters=[4, 4, 8], strides=[1, 2, 2])
    save_encoder(encoder, tmp_path / "encoder.safetensors", {"method": "SimCLR", "patch_size": [16, 16, 16]})
    out = succeed(capsys, "export-nnunet", tmp_path / "encoder.safetensors", tmp_path / "out", "--in_channels", 2)
    assert f"-pc {tmp_path / 'out' / 'checkpoint_final.pth'}" in out
    content = torch.load(tmp_path / "out" / "checkpoint_final.pth", weights_only=True)
    assert content["nnssl_adaptation_plan"]["pretrain_num_input_channels"] == 2
    save_encoder(build_encoder("resnet10", widen_factor=0.125), tmp_path / "other.safetensors", {"method": "C2L"})
    assert "nnU-Net has no network for" in fail(capsys, "export-nnunet", tmp_path / "other.safetensors", tmp_path)


def test_show_views_names_its_rows(capsys, folder, tmp_path):
    sheet = tmp_path / "sheet.png"
    out = succeed(capsys, "show-views", folder, "--size", 32, "--num_images", 2, "--num_views", 1, "--output", sheet)
    assert "row 1: " in out and "row 2: " in out and "row 3" not in out
    assert Image.open(sheet).format == "PNG"


def test_errors_of_the_rooms_are_one_line(capsys, folder, tmp_path):
    assert "no such folder of images" in fail(capsys, "index", tmp_path / "nothing")
    assert "no images among its" in fail(capsys, "index", tmp_path, "--output", tmp_path / "i.parquet")
    assert "no such table of labels" in fail(capsys, "prepare", folder, tmp_path / "s", "--labels_file", "no.csv")
    assert "there is no preset 'mocov2'" in fail(capsys, "show-views", folder, "--preset", "mocov2")
    assert "did you mean --num_images?" in fail(capsys, "show-views", folder, "--num_image", 2)
    assert "no kind of device" in fail(capsys, "doctor", "--device", "gpu")
    assert "unwritable" in fail(capsys, "index", folder, "--output", _unwritable(tmp_path), "--num_workers", 0)


def _unwritable(tmp_path: Path) -> Path:
    (tmp_path / "unwritable").write_text("a file where a folder should be")
    return tmp_path / "unwritable" / "index.parquet"


def test_help_is_light_and_the_module_runs():
    code = (
        "import sys; from monai_ssl.__main__ import main; main(['--help']); "
        "sys.exit(bool({'torch', 'monai', 'numpy', 'pyarrow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0
    done = subprocess.run([sys.executable, "-m", "monai_ssl", "descrive"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: there is no verb 'descrive'; did you mean describe?\n"


@pytest.mark.realdata
def test_every_file_of_the_zoo_is_described_or_refused_in_one_line(capsys, real_data):
    files = sorted(path for path in (real_data / "dicom_zoo/files").iterdir() if path.is_file())
    assert len(files) > 50
    for file in files:
        code = main(["describe", str(file)])
        shown = capsys.readouterr()
        if code == 0:
            assert "shown range" in shown.out or "orientation" in shown.out
            assert not shown.err
        else:
            assert shown.err.startswith(f"error: {file}: ") and shown.err.count("\n") == 1


@pytest.mark.realdata
def test_views_of_a_real_folder(capsys, real_data, tmp_path):
    succeed(capsys, "show-views", real_data / "radiographs", "--num_images", 2, "--output", tmp_path / "v.png")
    wide, high = Image.open(tmp_path / "v.png").size
    assert wide > 2 * high


def test_evaluate(capsys, tmp_path):
    make_toy_radiographs(tmp_path / "images")
    bundle = Path(__file__).parents[1] / "bundles/radiograph_classification"
    small = "architecture: densenet121, network_args: {init_features: 8, growth_rate: 4, block_config: [1, 1, 1, 1]}"
    (tmp_path / "study.yaml").write_text(
        f"output_dir: {tmp_path / 'out'}\nmodes: [knn]\nfractions: [0.5, 1]\nseeds: 1\nresamples: 20\n"
        f"tasks:\n  side: {{bundle: {bundle}, label_column: label, image_size: 32, {small}}}\n"
    )
    study = [tmp_path / "study.yaml", "--dataset_dir", tmp_path / "images"]
    assert "exclude each other" in fail(capsys, "evaluate", *study, "--cell", "0", "--report_only")
    assert "no cell" in fail(capsys, "evaluate", *study, "--report_only")
    assert "2 cells; submit" in succeed(capsys, "evaluate", *study, "--slurm", tmp_path / "cells.sh")
    assert f"--dataset_dir={tmp_path / 'images'}" in (tmp_path / "cells.sh").read_text()
    assert "side/random/knn/fraction-0.5/seed-0: done" in succeed(capsys, "evaluate", *study, "--cell", "0")
    assert "[2/2] side/random/knn/fraction-1/seed-0: done" in succeed(capsys, "evaluate", *study)
    assert (tmp_path / "out/report.html").is_file()
    (tmp_path / "study.yaml").write_text((tmp_path / "study.yaml").read_text().replace("[0.5, 1]", "[2, 1]"))
    assert main([str(word) for word in ("evaluate", *study)]) == 2
    assert capsys.readouterr().err.endswith("error: 1 of 2 cells failed; see above, or the report\n")
