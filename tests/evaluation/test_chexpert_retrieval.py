# SPDX-License-Identifier: Apache-2.0
"""The released format of the CheXpert 8x200 sets, with small files of the same form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toy_image_text import ToyImageText, ToyTokenizer

from monai_ssl.evaluation import (
    OpenImageText,
    Preprocessing,
    class_retrieval,
    read_chexpert_retrieval,
    report_chexpert_retrieval,
    score_retrieval,
)

COLUMNS = "No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia"
COLUMNS = [*COLUMNS.split(","), "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture"]
COLUMNS.append("Support Devices")
CLASSES = ("No Finding", "Edema", "Fracture")
IMAGE = "CheXpert-v1.0-small/train/patient{:05d}/study1/view1_frontal.jpg"


@pytest.fixture
def release(tmp_path) -> tuple[Path, Path]:
    """Four candidates and two image queries for each of three classes, three sentences, and images."""
    folder, images = tmp_path / "convirt", tmp_path / "data"
    rows = [",".join(["Path,Sex,Age,Frontal/Lateral,AP/PA", *COLUMNS])]
    queries, texts, number = ["Variable,Path"], ["Variable,Text"], 0
    for name in CLASSES:
        for place in range(6):
            number += 1
            path = IMAGE.format(number)
            (images / path).parent.mkdir(parents=True)
            picture(name, number).save(images / path)
            if place < 4:
                marks = [f"{float(column == name)}" for column in COLUMNS]
                rows.append(",".join([path, "Male", "61", "Frontal", "AP", *marks]))
            else:
                queries.append(f"{name},{path}")
        texts.append(f'{name},"This is {name}, surely."')
    for kind, table in (("image", queries), ("text", texts)):
        (folder / f"{kind}-retrieval").mkdir(parents=True)
        (folder / f"{kind}-retrieval/candidate.csv").write_text("\n".join(rows))
        (folder / f"{kind}-retrieval/query.csv").write_text("\n".join(table))
    return folder, images


def picture(name: str, number: int) -> Image.Image:
    """A bright square that the toy model sees: left of Edema, right of Fracture."""
    pixels = np.random.default_rng(number).normal(90, 5, (48, 48))
    if name != "No Finding":
        column = 12 if name == "Edema" else 36
        pixels[16:32, column - 6 : column + 6] += 120
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_the_released_files_are_read(release):
    folder, images = release
    found = read_chexpert_retrieval(folder, images)
    assert found.class_names == list(CLASSES), "in the order of the columns"
    assert np.bincount(found.candidate_classes).tolist() == [4, 4, 4]
    assert found.image_query_classes.tolist() == [0, 0, 1, 1, 2, 2] and found.text_query_classes.tolist() == [0, 1, 2]
    assert found.text_queries[1] == "This is Edema, surely."
    assert all(path.is_file() for path in found.candidates + found.image_queries)
    assert found.patients(found.candidates)[:2].tolist() == ["patient00001", "patient00002"]
    vectors = torch.eye(3)
    task = class_retrieval(
        "text to image",
        vectors[found.text_query_classes],
        vectors[found.candidate_classes],
        found.text_query_classes,
        found.candidate_classes,
        ks=(4,),
    )
    row = score_retrieval(task, n=30)[0]
    assert (row["value"], row["chance"]) == (1.0, pytest.approx(1 / 3))


def test_the_images_may_lie_in_the_large_release_or_be_the_folder_itself(release):
    folder, images = release
    (images / "CheXpert-v1.0-small").rename(images / "CheXpert-v1.0")
    at = [read_chexpert_retrieval(folder, root).candidates[0] for root in (images, images / "CheXpert-v1.0")]
    assert at[0] == at[1] and at[0].is_file()


def test_one_kind_of_queries_is_enough(release):
    folder, images = release
    (folder / "image-retrieval/query.csv").unlink()
    (folder / "image-retrieval/candidate.csv").unlink()
    found = read_chexpert_retrieval(folder, images)
    assert found.image_queries == [] and len(found.text_queries) == 3 and len(found.candidates) == 12
    (folder / "text-retrieval/query.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no queries: neither image-retrieval/query\.csv"):
        read_chexpert_retrieval(folder, images)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("image-retrieval/candidate.csv", "1.0,0.0", "1.0,1.0", r"candidate.csv, row 2: 2 positive findings"),
        ("image-retrieval/candidate.csv", "1.0,0.0", "0.0,0.0", r"candidate.csv, row 2: 0 positive findings"),
        ("image-retrieval/candidate.csv", "Path,Sex", "Pth,Sex", r"no column 'Path'; did you mean 'Pth'"),
        ("image-retrieval/candidate.csv", "patient00002", "patient00001", r"1 entries are there more than once, for"),
        (
            "image-retrieval/query.csv",
            "patient00005",
            "patient00001",
            r"1 queries are candidates too, for",
        ),
        ("image-retrieval/query.csv", "Edema,", "Oedema,", r"query.csv, row 4: no candidate has the class 'Oedema'"),
        ("text-retrieval/query.csv", '"This is Edema, surely."', "", r"query.csv, row 3: the column 'Text' is empty"),
        ("text-retrieval/query.csv", "Text", "Sentence", r"no column 'Text'"),
        ("text-retrieval/candidate.csv", "patient00002", "patient00099", r"have different candidates"),
    ],
)
def test_faults_are_named(release, file, old, new, message):
    folder, images = release
    edit(folder / file, old, new)
    if message.startswith((r"candidate.csv", r"no column 'Path'", r"1 entries")):
        (folder / "text-retrieval/candidate.csv").unlink()
    with pytest.raises(ValueError, match=message):
        read_chexpert_retrieval(folder, images)


def test_missing_images_are_counted_and_named(release):
    folder, images = release
    for number in (3, 5):
        (images / IMAGE.format(number)).unlink()
    with pytest.raises(FileNotFoundError, match=r"2 of the 18 images .* are not there, for instance .*patient00003"):
        read_chexpert_retrieval(folder, images)


def test_sentences_do_not_stand_in_messages(release):
    folder, images = release
    edit(folder / "text-retrieval/query.csv", "Edema, surely", "No Finding, surely")
    with pytest.raises(ValueError, match=r"more than once \(row 2 comes again\)") as caught:
        read_chexpert_retrieval(folder, images)
    assert "surely" not in str(caught.value)


def test_a_model_that_knows_the_classes_is_better_than_chance(release, tmp_path):
    folder, images = release
    words = {"No Finding": "normal", "Edema": "left", "Fracture": "right"}
    for name, word in words.items():
        edit(folder / "text-retrieval/query.csv", f"This is {name}, surely.", word)
    manifest = {"method": "ConVIRT", "images_seen": 64, "network": {"architecture": "resnet18"}}
    preprocessing = Preprocessing((48, 48), mean=0.0, std=1.0)
    opened = OpenImageText(ToyImageText(), ToyTokenizer(), preprocessing, manifest, "f" * 64)
    report = report_chexpert_retrieval(opened, folder, images, tmp_path / "out", ks=(4,), resamples=30)
    first = {row["task"]: row for row in reversed(report.rows) if row["class"] == "all"}
    assert {task: (row["value"], row["queries"]) for task, row in first.items()} == {
        "image to image": (1.0, 6),
        "text to image": (1.0, 3),
    }
    assert all(row["chance"] == pytest.approx(1 / 3) for row in first.values())
    assert first["text to image"]["other"] < 1, "an untrained network does not know the words"
    assert "ConVIRT (64 images seen)" in (tmp_path / "out/chexpert_8x200_report.md").read_text()
    next(path for path in (images / "CheXpert-v1.0-small").rglob("*.jpg")).write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ValueError, match=r"1 of 18 images can't be read; .*jpg: "):
        report_chexpert_retrieval(opened, folder, images, ks=(4,), resamples=30)
