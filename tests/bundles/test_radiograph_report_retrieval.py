# SPDX-License-Identifier: Apache-2.0
"""The bundle radiograph_report_retrieval on tiny made-up images with reports."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from bundle_runs import BundleRuns
from PIL import Image
from toy_radiographs import make_toy_radiographs

from monai_ssl.data import RadiographIntensity
from monai_ssl.evaluation import open_image_text, untrained_image_text
from monai_ssl.weights import save_image_text

pytest.importorskip("tokenizers")

BUNDLE = BundleRuns("radiograph_report_retrieval")
SECRET = "Zebrafish syndrome"
TEXTS = {
    "normal": ["The lungs are entirely clear.", "No spot is seen."],
    "left": ["There is a spot on the left.", "A bright area projects over the left lung."],
    "right": ["There is a spot on the right.", "A bright area projects over the right lung."],
}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Toy radiographs with a report each; the words of one report in seven stand nowhere else."""
    folder = make_toy_radiographs(tmp_path_factory.mktemp("toy") / "images")
    with open(folder / "labels.csv") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        row["report"] = " ".join([*TEXTS[row["label"]], f"{SECRET} is excluded." if number % 7 == 0 else ""]).strip()
    with open(folder / "labels.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (folder.parent / "prompts.yaml").write_text(yaml.safe_dump({"classes": TEXTS}))
    return folder


@pytest.fixture(scope="module")
def model_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "image_text.safetensors"
    opened = untrained_image_text([text for group in TEXTS.values() for text in group], 32, "resnet10")
    intensity = {"policy": RadiographIntensity().to_dict(), "mean": 0.5, "std": 0.25}
    manifest = {"method": "ConVIRT", "images_seen": 64, "patch_size": [32, 32], "intensity": intensity}
    save_image_text(opened.model, opened.tokenizer, path, manifest)
    return path


@pytest.fixture
def settings(images, tmp_path) -> dict:
    return {
        "dataset_dir": str(images),
        "output_dir": str(tmp_path / "out"),
        "cache_dir": str(images.parent / "cache"),
        "label_column": "label",
        "classes": list(TEXTS),
        "prompts_file": str(images.parent / "prompts.yaml"),
        "resamples": 20,
        "store::num_workers": 0,
        "store::drop_duplicates": False,
    }


def test_a_model_is_compared_with_itself_untrained(settings, model_file, caplog, capsys):
    with caplog.at_level(logging.INFO):
        BUNDLE.run("evaluate", settings | {"model_file": str(model_file), "split": "all"})
    out = Path(settings["output_dir"])
    rows = json.loads((out / "all_report.json").read_text())["rows"]
    overall = {(row["task"], row["k"]): row for row in rows if row["class"] == "all"}
    assert {task for task, _ in overall} == {
        *("image to report", "report to image", "image to image", "text to image", "zero-shot")
    }
    for row in overall.values():
        assert row["lineage"] == "ConVIRT (64 images seen)" and row["other"] is not None
        assert row["over_other"] == pytest.approx(row["value"] - row["other"])
    assert overall["image to image", 5]["groups"] == 30
    found = sorted(path.name for path in out.iterdir() if path.is_file())
    assert {"all_report.md", "all_report_bars.png", "all_report_text_to_image.html"} <= set(found)
    assert Image.open(out / "all_report_image_to_image.png").format == "PNG"
    shown = capsys.readouterr().out + caplog.text
    written = b"".join((out / name).read_bytes() for name in found)
    assert "Zebra" not in shown and b"Zebra" not in written, "no report's text is written anywhere"


def test_without_a_model_the_figures_are_of_no_training_and_say_so(settings, caplog):
    BUNDLE.run("evaluate", settings | {"image_size": 32})
    text = (Path(settings["output_dir"]) / "test_report.md").read_text()
    assert "network that was never trained" in text and "| difference |" not in text and "lineage: random" in text
    assert "no model_file: an untrained network is evaluated" in caplog.text


def test_reports_alone_and_classes_alone(settings, model_file):
    common = settings | {"model_file": str(model_file), "split": "all", "compare_untrained": False}
    nothing = {"label_column": None, "prompts_file": None, "classes": None}
    BUNDLE.run("evaluate", common | nothing | {"where": "site=A", "report_name": "a"})
    BUNDLE.run("evaluate", common | {"use_reports": False, "prompts_file": None, "report_name": "b"})
    out = Path(settings["output_dir"])
    tasks = [{row["task"] for row in json.loads((out / f"{name}.json").read_text())["rows"]} for name in "ab"]
    assert tasks == [{"image to report", "report to image"}, {"image to image"}]
    assert json.loads((out / "a.json").read_text())["rows"][0]["queries"] == 30


def test_mistakes_are_answered(settings, images, model_file, tmp_path):
    model = {"model_file": str(model_file)}
    assert "did you mean 'label'" in BUNDLE.message("evaluate", settings | model | {"label_column": "lable"})
    assert "prompts need labels" in BUNDLE.message("evaluate", settings | model | {"label_column": None})
    findings = settings | model | {"label_column": ["spot_left", "spot_right"], "classes": None}
    assert "the prompts are of competing classes, the labels of findings" in BUNDLE.message("evaluate", findings)
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"classes": {"normal": ["x y"], "lefft": ["z"]}}))
    wrong = settings | model | {"prompts_file": str(tmp_path / "p.yaml")}
    assert "no prompts for 'left'; is 'lefft' meant" in BUNDLE.message("evaluate", wrong)
    assert "split" in BUNDLE.message("evaluate", settings | model | {"split": "tset"})
    nothing = {"label_column": None, "prompts_file": None, "classes": None, "use_reports": False}
    assert "nothing to ask" in BUNDLE.message("evaluate", settings | model | nothing)
    assert "modelfile" in BUNDLE.message("evaluate", settings | {"modelfile": "x"})


def test_inference_embeds_a_folder(settings, model_file):
    kept = {key: settings[key] for key in ("dataset_dir", "output_dir", "store::num_workers")}
    BUNDLE.run("inference", kept | {"model_file": str(model_file)})
    table = pq.read_table(Path(settings["output_dir"]) / "embeddings.parquet")
    vectors = np.stack(table["features"].to_pylist())
    assert vectors.shape == (60, 512) and table["path"][0].as_py() == "p00_0.png"
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_the_untrained_copy_of_a_model_is_of_its_kind(model_file):
    opened = open_image_text(model_file)
    fresh = opened.untrained(3)
    assert opened.trained and not fresh.trained and fresh.lineage == "random" and opened.temperature == 0.1
    x = torch.rand(2, 1, 32, 32)
    assert fresh.model.embed_images(x).shape == opened.model.embed_images(x).shape
    assert not torch.allclose(fresh.model.embed_images(x), opened.model.embed_images(x), atol=1e-3)
