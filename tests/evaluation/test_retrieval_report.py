# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from monai_ssl.evaluation import (
    Hit,
    HitRow,
    RunFacts,
    class_retrieval,
    hit_sheet_html,
    hit_sheet_png,
    retrieval_report,
    score_retrieval,
    score_zero_shot,
)

FACTS = RunFacts("zero-shot", "random", 0.0, 0, 0, "abc", 1.5, "cpu")


@pytest.fixture
def rows():
    classes = np.arange(24) % 3
    vectors, noise = torch.eye(3)[classes], torch.rand(24, 3, generator=torch.Generator().manual_seed(0))
    good, bad = (
        class_retrieval("image to image", x, x, classes, classes, query_patients=np.arange(24) // 2,
                        item_patients=np.arange(24) // 2, ks=(1, 5), class_names=["a", "b", "c"])
        for x in (vectors, noise)
    )  # fmt: skip
    scored = score_retrieval(good, bad, n=50)
    return scored + score_zero_shot(classes, vectors.numpy(), ["a", "b", "c"], n=50)


def test_report_says_the_figures_and_the_run(rows, tmp_path):
    report = retrieval_report(rows, FACTS, title="toy", notes=["No weights were given."], resamples=50)
    text = str(report)
    assert "| image to image | all | 24 | 24 | precision@5 | 1.000 | 1.000 to 1.000 | 0.318 |" in text
    assert "No weights were given." in text and "- split_hash: abc" in text and "## By class" in text
    assert "50 resamples of patients or images" in text and "the same network untrained" in text
    assert report.summary() == (
        "toy: image to image precision@1 1.000 (chance 0.318); zero-shot AUC 1.000 (chance 0.500)"
    )
    path = report.save(tmp_path, "r")
    assert path.read_text() == text
    saved = json.loads((tmp_path / "r.json").read_text())
    assert saved["rows"] == report.rows and saved["rows"][0]["seed"] == 0
    table = list(csv.DictReader((tmp_path / "r.csv").open()))
    assert len(table) == len(rows) and table[0]["task"] == "image to image"
    assert Image.open(tmp_path / "r_bars.png").format == "PNG"
    with pytest.raises(ValueError, match="nothing to report"):
        retrieval_report([], FACTS)


def test_a_report_without_a_second_model_has_no_columns_for_it(rows):
    alone = [row for row in rows if row["task"] == "zero-shot"]
    text = str(retrieval_report(alone, FACTS))
    assert "untrained" not in text and "| zero-shot | all | 24 | 3 | AUC | 1.000 |" in text


def test_a_task_that_nobody_can_answer_is_said_and_not_drawn(rows, tmp_path):
    alone = np.arange(12)  # each image is the only one of its class
    task = class_retrieval("image to image", torch.eye(12), torch.eye(12), alone, alone, query_patients=alone,
                           item_patients=alone)  # fmt: skip
    scored = score_retrieval(task, n=20)
    assert scored[0]["value"] is None and (scored[0]["queries"], scored[0]["left_out"]) == (0, 12)
    report = retrieval_report(scored + rows, FACTS)
    assert "12 queries of image to image have no right item and are left out." in str(report)
    report.save(tmp_path)
    assert (tmp_path / "report_bars.png").is_file()


def test_sheets_show_each_hit_and_the_page_stands_alone():
    pixels = np.linspace(0, 1, 400).reshape(20, 20)
    hits = [Hit(pixels, 0.9, True, "a/<b>.png"), Hit(pixels, 0.5, False), Hit(pixels, 0.1)]
    rows = [HitRow("effusion & $x$ <script>", hits), HitRow("an image", hits[:1], pixels)]
    page = hit_sheet_html(rows, "hits <1>").decode()
    assert page.count("data:image/png;base64,") == 5 and "a/&lt;b&gt;.png" in page
    assert "<script" not in page and not re.search(r"(src|href)=.(?!data:)", page) and "http" not in page
    assert page.count("class='right'") == 2 and page.count("class='wrong'") == 1
    one = Image.open(io.BytesIO(hit_sheet_png(rows[:1], "one")))
    two = Image.open(io.BytesIO(hit_sheet_png(rows, "two")))
    assert two.width == one.width and two.height > 1.5 * one.height
    with pytest.raises(ValueError, match="no hit to show"):
        hit_sheet_png([HitRow("x", [])], "none")
