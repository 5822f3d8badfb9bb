# SPDX-License-Identifier: Apache-2.0
"""What the labelling app does without its server: embed once, check labels, plan, learn, predict, convert DICOM."""

from __future__ import annotations

import csv
import json
import shutil
import stat
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from toy_volumes import make_toy_volumes, write_ct_series

from monai_ssl.data import make_example_radiographs, read_radiograph
from monai_ssl.label import STRATEGIES
from monai_ssl.label.annotation import embedding
from monai_ssl.label.annotation.bundles import allowed_settings, bundle_kind, sorted_bundles
from monai_ssl.label.annotation.dicom import convert_dicom
from monai_ssl.label.annotation.embedding import embed_images, read_embedded, similar_images
from monai_ssl.label.annotation.folder import StudiesFolder
from monai_ssl.label.annotation.labels import check_label, class_labels
from monai_ssl.label.annotation.plans import read_plans
from monai_ssl.label.annotation.predicting import classify_image
from monai_ssl.label.annotation.scoring import score_images
from monai_ssl.label.annotation.training import learn_classes, pretrain_encoder
from monai_ssl.networks import build_encoder
from monai_ssl.weights import save_encoder

BUNDLES = Path(__file__).parents[3] / "bundles"


@pytest.fixture
def folder(tmp_path, toy_folder, toy_encoder) -> StudiesFolder:
    """Eighteen toy radiographs, one copy and one broken file."""
    studies = tmp_path / "studies"
    studies.mkdir()
    for path in sorted(toy_folder.glob("*.png"))[:18]:
        shutil.copy(path, studies)
    shutil.copy(studies / "p00_0.png", studies / "q_copy.png")
    (studies / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    return StudiesFolder(studies, toy_encoder)


def images_of(folder: StudiesFolder) -> dict[str, str]:
    return {path.name.split(".")[0]: str(path) for path in sorted(folder.studies.glob("*.*")) if path.is_file()}


def labels_of(folder: StudiesFolder, toy_folder: Path, ids) -> dict[str, str]:
    with open(toy_folder / "labels.csv", newline="") as file:
        truth = {row["file"].split(".")[0]: row["label"] for row in csv.DictReader(file)}
    place = folder.studies / "labels"
    place.mkdir(exist_ok=True)
    paths = {}
    for image in ids:
        (place / f"{image}.json").write_text(json.dumps({"label": truth[image]}))
        paths[image] = str(place / f"{image}.json")
    return paths


def test_images_are_embedded_once_and_bad_ones_counted(folder, monkeypatch):
    images = images_of(folder)
    found, _ = embed_images(folder, images)
    assert len(found.ids) == 19 and set(found.refused) == {"broken"}
    copy, original = found.ids.index("q_copy"), found.ids.index("p00_0")
    assert found.duplicate_of[copy] == original
    np.testing.assert_array_equal(read_embedded(folder).features, found.features)
    near = similar_images(found, "p00_0", 18)
    assert dict(near)["q_copy"] == near[0][1] == 1.0 and "p00_0" not in dict(near)
    assert [cosine for _, cosine in near] == sorted((cosine for _, cosine in near), reverse=True)
    with pytest.raises(ValueError, match="no embedded image 'broken'"):
        similar_images(found, "broken")

    seen = []
    extract = embedding.extract_features
    monkeypatch.setattr(
        embedding, "extract_features", lambda e, loader, *a: seen.append(len(loader.dataset)) or extract(e, loader, *a)
    )
    embed_images(folder, images)
    assert seen == [], "nothing is new"
    Image.fromarray(np.arange(48 * 48, dtype=np.uint8).reshape(48, 48)).save(folder.studies / "new.png")
    again, _ = embed_images(folder, images_of(folder))
    assert seen == [1] and "new" in again.ids
    embedding.features_path(folder).write_bytes(b"damaged")
    assert read_embedded(folder) is None
    assert len(embed_images(folder, images)[0].ids) == 19


def test_an_encoder_of_another_dimension_is_refused(tmp_path, toy_encoder):
    make_toy_volumes(tmp_path / "toy", num_patients=2)
    images = {path.name: str(path) for path in (tmp_path / "toy/images").iterdir()}
    with pytest.raises(ValueError, match="for images of 2 dimensions, and 2 of 2 files are volumes"):
        embed_images(StudiesFolder(tmp_path / "toy/images", toy_encoder), images)
    with pytest.raises(FileNotFoundError, match="no encoder"):
        embed_images(StudiesFolder(tmp_path / "toy/images"), images)
    with pytest.raises(ValueError, match="no image in"):
        StudiesFolder(tmp_path, toy_encoder).open_store({})


def test_scoring_plans_and_uses_classes_as_soon_as_there_are_two(folder, toy_folder):
    images = images_of(folder)
    score_images(folder, images, {})
    plans = read_plans(folder)
    assert set(plans.plans) == set(STRATEGIES) and plans.chosen_by["margin"] == "typicality"
    assert "no model" in plans.note
    first = plans.waiting("core_set", [])
    assert "q_copy" not in first and "broken" not in first
    assert first[1] == plans.waiting("core_set", [first[0]])[0]
    assert "p00_0" not in plans.waiting("random", ["q_copy"]), "its copy is labelled"
    score_images(folder, images, labels_of(folder, toy_folder, ["p00_0"]))
    assert "one class" in read_plans(folder).note
    score_images(folder, images, labels_of(folder, toy_folder, ["p00_0", "p01_0", "p02_0"]))
    plans = read_plans(folder)
    assert plans.chosen_by["margin"] == "margin" and plans.note == "" and plans.labelled == 3
    assert not {"p00_0", "p01_0", "p02_0"} & set(plans.plans["margin"])


def test_a_classifier_is_learned_from_the_labelled_images_alone(folder, toy_folder):
    images = images_of(folder)
    with pytest.raises(ValueError, match="no image has a class yet"):
        learn_classes(folder, images, {}, {})
    labels = labels_of(folder, toy_folder, ["p00_0", "p00_1"])
    with pytest.raises(ValueError, match="all labelled images are normal"):
        learn_classes(folder, images, labels, {})
    with pytest.raises(ValueError, match="needs a classification bundle"):
        learn_classes(folder, images, labels, {"mode": "finetune"})
    labels = labels_of(folder, toy_folder, [f"p{n:02d}_{k}" for n in range(6) for k in range(2)])
    found = learn_classes(folder, images, labels, {})
    assert found == {"labelled": 12, "classes": ["left", "normal", "right"], "mode": "linear"}
    p = classify_image(folder.model("classification"), images["p06_0"])
    assert set(p) == {"left", "normal", "right"} and sum(p.values()) == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match=r"broken\.png can't be used"):
        classify_image(folder.model("classification"), images["broken"])
    before = folder.model("classification").read_bytes()
    with pytest.raises(ValueError, match="max_epochs must be a number"):
        learn_classes(folder, images, labels, {"max_epochs": "$1/0"})
    assert folder.model("classification").read_bytes() == before


def test_labels_of_another_grid_or_kind_are_refused(tmp_path):
    affine = np.diag([1.0, 2, 3, 1])
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.uint8), affine), tmp_path / "image.nii.gz")

    def label(shape=(4, 5, 6), moved=0.0):
        place = affine.copy()
        place[0, 3] += moved
        nib.save(nib.Nifti1Image(np.zeros(shape, np.uint8), place), tmp_path / "label.nii.gz")
        return tmp_path / "label.nii.gz"

    check_label(tmp_path / "image.nii.gz", label())
    check_label(tmp_path / "image.nii.gz", label((4, 5, 6, 1)))
    with pytest.raises(ValueError, match="4 x 5 x 7 voxels, its image 4 x 5 x 6"):
        check_label(tmp_path / "image.nii.gz", label((4, 5, 7)))
    with pytest.raises(ValueError, match=r"up to 0\.50 mm from the image's"):
        check_label(tmp_path / "image.nii.gz", label(moved=0.5))
    (tmp_path / "bad.nii.gz").write_bytes(b"x")
    with pytest.raises(ValueError, match="can't be read"):
        check_label(tmp_path / "image.nii.gz", tmp_path / "bad.nii.gz")
    (tmp_path / "label.txt").write_text("x")
    with pytest.raises(ValueError, match="kind that is not taken"):
        check_label(tmp_path / "image.nii.gz", tmp_path / "label.txt")
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((6, 4), np.uint8)).save(tmp_path / "b.png")
    check_label(tmp_path / "a.png", tmp_path / "a.png")
    with pytest.raises(ValueError, match="another grid"):
        check_label(tmp_path / "a.png", tmp_path / "b.png")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"label": 3}', '{"label": "/etc"}', '{"findings": ["a\\nb"]}'])
def test_classes_that_are_none_are_refused(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=r"the label x\.json"):
        class_labels({"x": str(tmp_path / "x.json")})


def test_classes_and_findings(tmp_path):
    contents = {"a": {"findings": ["nodule"]}, "b": {"findings": []}, "c": {"findings": ["effusion", "nodule"]}}
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    paths = {name: str(tmp_path / f"{name}.json") for name in contents}
    found = class_labels(paths)
    assert found.multilabel and found.class_names == ["effusion", "nodule"]
    assert found.array(["a", "b", "other", "c"]).tolist() == [[0, 1], [0, 0], [-1, -1], [1, 1]]
    (tmp_path / "d.json").write_text('{"label": "normal"}')
    with pytest.raises(ValueError, match="use one of the two"):
        class_labels(paths | {"d": str(tmp_path / "d.json")})


def test_a_request_sets_numbers_and_words_only():
    assert allowed_settings({"max_epochs": 3, "modality": "MR", "dataset_dir": "/etc", "model": "x"}) == {
        "max_epochs": 3,
        "modality": "MR",
    }
    for key, value in (("max_epochs", "$x"), ("seed", True), ("batch_size", -1), ("modality", "@store")):
        with pytest.raises(ValueError, match=key):
            allowed_settings({key: value})


def test_bundles_are_told_apart():
    assert bundle_kind(BUNDLES / "volume_segmentation") == "segmentation"
    assert bundle_kind(BUNDLES / "radiograph_c2l_pretraining") == "pretraining"
    found = sorted_bundles([str(BUNDLES / "radiograph_classification"), str(BUNDLES / "radiograph_masked_pretraining")])
    assert set(found) == {"classification", "pretraining"}
    with pytest.raises(ValueError, match="both for classification"):
        sorted_bundles([str(BUNDLES / "radiograph_classification"), str(BUNDLES / "volume_classification")])
    with pytest.raises(FileNotFoundError, match="no bundle"):
        bundle_kind(BUNDLES)


def test_dicom_becomes_what_the_datastore_takes_and_leads_back(tmp_path):
    source = make_example_radiographs(tmp_path / "dicom", num_patients=10, images_per_patient=(1, 1), size=64)
    (source / "images/broken.dcm").write_bytes(b"\0" * 128 + b"DICMnothing")
    counts = convert_dicom(source, tmp_path / "studies")
    assert counts == {"written": 10, "kept": 0, "refused": 1}
    assert convert_dicom(source, tmp_path / "studies") == {"written": 0, "kept": 10, "refused": 1}
    links = tmp_path / "studies/.monai_ssl/dicom_links.csv"
    assert stat.S_IMODE(links.stat().st_mode) == 0o600
    with open(links, newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    for row in rows:
        assert "EXAMPLE" not in row["image"]
        values, meta = read_radiograph(row["dicom_files"])
        low, high = meta["value_range"]
        written, _ = read_radiograph(tmp_path / "studies" / row["image"])
        np.testing.assert_allclose(written / 65535, np.clip((values - low) / (high - low), 0, 1), atol=1e-5)
    with pytest.raises(FileNotFoundError, match="no folder"):
        convert_dicom(tmp_path / "nothing", tmp_path / "studies")
    with pytest.raises(ValueError, match="no DICOM image"):
        convert_dicom(tmp_path / "studies", tmp_path / "other")


@pytest.mark.slow
def test_the_encoder_is_pretrained_on_all_images(folder):
    torch.manual_seed(0)
    arguments = {"channels": [16, 32, 64, 128, 256], "strides": [2, 2, 2, 2], "num_res_units": 2}
    norm = {"norm": ["group", {"num_groups": 1}]}
    encoder = build_encoder("unet", 2, 1, **arguments, **norm)
    path = folder.studies.parent / "unet.safetensors"
    save_encoder(encoder, path, {"method": "test", "patch_size": [96, 96]})
    own = StudiesFolder(folder.studies, path)
    request = {"max_epochs": 1, "batch_size": 8}
    assert pretrain_encoder(own, images_of(own), BUNDLES / "radiograph_masked_pretraining", request) == {"images": 20}
    assert own.encoder == own.state / "encoder.safetensors"
    found, _ = embed_images(own, images_of(own))
    assert found.features.shape == (19, 256)


@pytest.mark.slow
def test_a_bundle_fine_tunes_the_classifier(folder, toy_folder):
    images = images_of(folder)
    labels = labels_of(folder, toy_folder, [f"p{n:02d}_0" for n in range(6)])
    request = {"mode": "finetune", "max_epochs": 1, "steps_per_epoch": 2, "batch_size": 4}
    found = learn_classes(folder, images, labels, request, BUNDLES / "radiograph_classification")
    assert found["mode"] == "finetune" and found["labelled"] == 6
    assert not (folder.state / "runs/classification").exists(), "what the run left is removed"
    p = classify_image(folder.model("classification"), images["p06_0"])
    assert sum(p.values()) == pytest.approx(1, abs=1e-5)


def test_series_become_volumes_in_their_place(tmp_path):
    hounsfield = np.random.default_rng(0).integers(-900, 900, (5, 6, 7)).astype(np.int16)
    affine = write_ct_series(tmp_path / "dicom", hounsfield, np.eye(3)[:2], (2.5, 1.5, 0.75))
    assert convert_dicom(tmp_path / "dicom", tmp_path / "studies", 3)["written"] == 1
    (path,) = (tmp_path / "studies").glob("*.nii.gz")
    written = nib.load(path)
    np.testing.assert_allclose(np.asarray(written.dataobj).T, hounsfield)
    np.testing.assert_allclose(written.affine[:, [2, 1, 0, 3]], affine, atol=1e-4)
