# SPDX-License-Identifier: Apache-2.0
"""The report: one page that needs nothing else and names nobody, and tables that are right."""

from __future__ import annotations

import base64
import csv
import io
import json
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from study_files import toy_study

from monai_ssl.data import ImageStore
from monai_ssl.evaluation.study import study_cells, write_study_report
from monai_ssl.evaluation.study.html import HtmlPage
from monai_ssl.evaluation.study.results import Predictions
from monai_ssl.evaluation.study.tables import (
    comparison_table,
    labels_saved_table,
    robustness_table,
    score_table,
)
from monai_ssl.evaluation.study.verdict import verdicts
from monai_ssl.metrics import area_under_roc

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects pictures, headings, other references and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.images, self.references, self.words, self.tags = [], [], [], [], set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if tag == "img" and name == "src":
                self.images.append(value)
            elif name in ("src", "href", "srcset", "action", "data", "background", "poster"):
                self.references.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def page(whole_study):
    return Page((whole_study.output_dir / "report.html").read_text())


def test_the_page_is_whole_and_needs_nothing_else(whole_study, page):
    text = (whole_study.output_dir / "report.html").read_text()
    assert text.startswith("<!DOCTYPE html>") and page.open == []
    assert "http://" not in text and "https://" not in text and "//" not in "".join(page.words)
    assert page.references == [] and not page.tags & {"script", "link", "iframe", "object"}
    assert len(page.images) == 7  # curves of labels, of convergence, of robustness; two maps, two contact sheets
    for source in page.images:
        assert source.startswith("data:image/png;base64,")
        picture = Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1])))
        assert min(picture.size) > 100 and np.asarray(picture.convert("L")).std() > 5


def test_no_patient_and_no_image_is_named(whole_study, toy_images):
    with open(toy_images / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    table = ImageStore(next(whole_study.output_dir.glob("data/toy/*/store"))).table
    secrets = [row["file"] for row in rows[::7]] + table["group_id"].to_pylist()[::7] + [str(toy_images)]
    written = [*whole_study.output_dir.glob("report.*"), *whole_study.output_dir.glob("tables/*.csv")]
    written += [path for path in whole_study.output_dir.glob("tensorboard/**/*") if path.is_file()]
    written += list(whole_study.output_dir.glob("cells/**/cell.json"))
    assert len(written) > 20
    for path in written:
        content = path.read_bytes()
        assert not [secret for secret in secrets if secret.encode() in content], path


def test_same_figures_everywhere(whole_study, page):
    content = json.loads((whole_study.output_dir / "report.json").read_text())
    with open(whole_study.output_dir / "tables/scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    text = " ".join(page.words)
    assert len(rows) == len(content["tables"]["scores"]) == 6
    for row, same in zip(rows, content["tables"]["scores"], strict=True):
        assert float(row["mean"]) == same["mean"] and f"{same['mean']:.3f}" in text
    for name in ("comparisons", "labels_saved", "convergence", "calibration", "robustness", "representation"):
        assert content["tables"][name], name
    assert content["missing"] == 0 and content["verdicts"][0] in text
    assert len(list((whole_study.output_dir / "tensorboard").iterdir())) == 12


def test_groups_of_patients(whole_study):
    rows = json.loads((whole_study.output_dir / "report.json").read_text())["tables"]["subgroups"]
    mine = {(row["column"], row["group"]): row for row in rows if (row["encoder"], row["mode"]) == ("c2l", "linear")}
    assert "no such column" in mine["sex", ""]["note"]
    for site in "AB":  # three patients each, below the four that were asked for
        assert mine["site", site]["auc"] is None and mine["site", site]["patients"] is None
        assert "fewer than 4 patients" in mine["site", site]["note"]


def test_comparisons_are_paired(whole_study):
    cells = json.loads((whole_study.output_dir / "report.json").read_text())["cells"]
    row = next(row for row in comparison_table(whole_study, cells) if row["mode"] == "linear")
    areas = {
        (encoder, seed): area_under_roc(kept.truth, kept.probabilities)
        for encoder in ("c2l", "random")
        for seed in (0, 1)
        for kept in [Predictions.load(whole_study.output_dir / f"cells/toy/{encoder}/linear/fraction-0.5/seed-{seed}")]
    }
    differences = [areas["c2l", seed] - areas["random", seed] for seed in (0, 1)]
    assert row["difference"] == pytest.approx(np.mean(differences))
    assert row["seed_sd"] == pytest.approx(np.std(differences, ddof=1))
    assert row["low"] <= row["difference"] <= row["high"] and row["p"] <= row["p_holm"] <= 1


def cell(encoder: str, mode: str, labels: int, seed: int, score: float) -> dict:
    return {
        "task": "t",
        "encoder": encoder,
        "mode": mode,
        "fraction": labels / 1000,
        "seed": seed,
        "num_labels": labels,
        "result": {"measure": "auc", "score": score},
        "wall_time_s": 1.0,
        "lineage": "random",
    }


def test_labels_saved_of_known_curves():
    cells = [cell("random", "finetune", n, s, 0.5 + 0.1 * np.log10(n)) for n in (10, 100, 1000) for s in (0, 1)]
    cells += [cell("c2l", "linear", 10, s, 0.75 + (0.02 if s else -0.02)) for s in (0, 1)]
    cells += [cell("c2l", "linear", 100, 0, 0.9)]
    scores = score_table(cells)
    first, second = labels_saved_table(scores)
    assert next(r for r in scores if r["encoder"] == "c2l")["sd"] == pytest.approx(0.02 * 2**0.5)
    assert (first["baseline"], first["labels"]) == ("from scratch", 10)
    assert first["labels_needed"] == pytest.approx(10**2.5) and first["saved"] == pytest.approx(1 - 10 / 10**2.5)
    assert second["needed"] == "not reached with 1000" and second["saved"] is None


def test_robustness_over_seeds():
    def tested(seed: int, drop: float) -> dict:
        part = {"levels": [1, 2], "identity": 0, "unit": "u", "source": "s", "scores": [0.9, 0.9 - drop]}
        part |= {"mean_drop": drop / 2, "worst_drop": drop, "worst_level": 2, "spread": 0.1}
        return cell("c2l", "linear", 10, seed, 0.9) | {"robustness": {"score": 0.9, "perturbations": {"noise": part}}}

    (row,) = robustness_table([tested(0, 0.1), tested(1, 0.3), cell("c2l", "knn", 10, 0, 0.9)])
    assert (row["mean_drop"], row["worst_drop"], row["seeds"]) == (pytest.approx(0.1), 0.3, 2)
    assert row["scores"] == [0.9, pytest.approx(0.7)]


@pytest.mark.parametrize(
    ("difference", "p", "words"),
    [(0.1, 0.01, "is better than"), (-0.1, 0.01, "is WORSE than"), (0.1, 0.2, "can't be told"), (0.1, None, "no test")],
)
def test_verdicts_are_no_stronger_than_the_numbers(difference, p, words):
    row = {"task": "t", "encoder": "c2l", "mode": "finetune", "fraction": 0.1, "difference": difference}
    (said,) = verdicts(None, {"comparisons": [{**row, "p_holm": p, "better_seeds": 2, "seeds": 3}]})
    assert words in said and "fine-tuning" in said


def test_text_is_escaped():
    made = HtmlPage("a <b> & c")
    made.paragraph("<script>alert(1)</script>", "warning")
    made.table({"x <y>": "x"}, [{"x": "<img src=http:>"}], "<i>")
    page = Page(str(made))
    assert not page.tags & {"script", "img", "b", "i"} and "<script>alert(1)</script>" in page.words


def test_a_study_without_cells_has_no_report(toy_images, tmp_path):
    study = toy_study(tmp_path, toy_images, None, {"architecture": "resnet10"}, modes=["linear"], seeds=1)
    assert len(study_cells(study)) == 3
    with pytest.raises(ValueError, match=r"no cell in .* is finished"):
        write_study_report(study)
