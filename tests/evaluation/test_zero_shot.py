# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from toy_image_text import PROMPTS, ToyImageText, ToyTokenizer

from monai_ssl.evaluation import Prompts, read_prompts, score_zero_shot, zero_shot_probabilities
from monai_ssl.metrics import area_under_roc

FINDINGS = {"findings": {"left": {"positive": ["a spot left"], "negative": ["normal"]}}}


def write(path, content) -> str:
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=True))
    return str(path)


def test_classes_and_findings_are_read_from_yaml_and_json(tmp_path):
    prompts = read_prompts(write(tmp_path / "p.yaml", PROMPTS))
    assert prompts.names == ["left", "normal", "right"] and prompts.positive[1] == ["no spot, normal", "normal chest"]
    (tmp_path / "p.json").write_text(json.dumps(PROMPTS))
    from_json = read_prompts(tmp_path / "p.json")
    assert from_json.of(["right", "left"]).positive == [["a spot right"], ["left spot"]] and not from_json.multilabel
    found = read_prompts(write(tmp_path / "f.yml", FINDINGS))
    assert found == Prompts(["left"], [["a spot left"]], [["normal"]]) and found.multilabel
    with pytest.raises(ValueError, match="no prompts for 'rigth'; is 'right' meant"):
        from_json.of(["rigth"])


def test_the_mean_of_several_prompts_tells_the_classes():
    model, tokenizer = ToyImageText(), ToyTokenizer()
    prompts = Prompts(list(PROMPTS["classes"]), list(PROMPTS["classes"].values()))
    images, labels = torch.eye(3).repeat(20, 1) + 0.1, np.tile(np.arange(3), 20)
    scores = zero_shot_probabilities(torch.nn.functional.normalize(images), prompts, model, tokenizer)
    torch.testing.assert_close(scores.sum(dim=1), torch.ones(60))
    assert area_under_roc(labels, scores.numpy()) == 1.0
    sharper = zero_shot_probabilities(
        torch.nn.functional.normalize(images), prompts, model, tokenizer, temperature=0.01
    )
    assert (sharper.amax(dim=1) > scores.amax(dim=1)).all()


def test_a_finding_is_its_positive_against_its_negative_prompts():
    model, tokenizer = ToyImageText(), ToyTokenizer()
    prompts = Prompts(["left", "right"], [["left"], ["right"]], [["normal"], ["normal"]])
    scores = zero_shot_probabilities(torch.eye(3), prompts, model, tokenizer)
    assert scores.shape == (3, 2)
    assert scores[1, 0] > 0.99 and scores[0, 0] < 0.01
    assert scores[2, 0] == pytest.approx(0.5, abs=0.05), "an image of neither side is undecided"
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        zero_shot_probabilities(torch.eye(3), prompts, model, tokenizer, temperature=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("classes: [a, b]\n", "'classes' must name at least 2"),
        ("classes:\n  a: [x]\n", "'classes' must name at least 2"),
        ("prompts:\n  a: [x]\n", "is no file of prompts: it holds either 'classes'.*; it has prompts"),
        ({**PROMPTS, **FINDINGS}, "is no file of prompts"),
        ("classes:\n  a: []\n  b: [x]\n", "p.yaml: a must be a list of sentences"),
        ("classes:\n  a: [x]\n  b: ['']\n", "p.yaml: b: entry 1 is empty"),
        ("classes:\n  a: [x]\n  b: [y, no]\n", "p.yaml: b: entry 2 is a bool, not a sentence; put it into quotes"),
        ("classes: {a: [x]\n", "p.yaml is no YAML, line 2"),
        ("findings:\n  a: [x]\n", "a must have 'positive' and 'negative' sentences"),
        ("findings:\n  a: {positive: [x]}\n", "a must have 'positive' and 'negative' sentences"),
        ("findings:\n  a: {positive: [x], negative: {}}\n", "a: negative must be a list of sentences"),
    ],
)
def test_bad_files_are_explained(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_prompts(write(tmp_path / "p.yaml", content))


def test_no_file_and_no_json(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file of prompts"):
        read_prompts(tmp_path / "nothing.yaml")
    with pytest.raises(ValueError, match=r"p\.json is no JSON"):
        read_prompts(write(tmp_path / "p.json", "{"))


def test_scores_are_those_of_the_metrics_and_compared_in_pairs():
    rng = np.random.default_rng(0)
    labels = np.tile(np.arange(3), 20)
    good = np.eye(3)[labels] + rng.normal(0, 0.3, (60, 3))
    rows = score_zero_shot(labels, good, ["a", "b", "c"], other=rng.random((60, 3)), groups=np.arange(60) // 2, n=100)
    assert [row["class"] for row in rows] == ["all", "a", "b", "c"] and rows[0]["groups"] == 30
    assert rows[0]["value"] == pytest.approx(area_under_roc(labels, good))
    assert rows[2]["value"] == pytest.approx(area_under_roc(labels == 1, good[:, 1]))
    assert rows[0]["chance"] == 0.5 and rows[0]["over_chance"] == pytest.approx(rows[0]["value"] - 0.5)
    assert (
        rows[0]["over_other"] == pytest.approx(rows[0]["value"] - rows[0]["other"]) and rows[0]["over_other_p"] < 0.05
    )
    findings = np.stack([labels == 0, labels == 1], axis=1).astype(int)
    findings[0] = -1
    found = score_zero_shot(findings, good[:, :2], ["a", "b"], n=50)
    assert (
        found[1]["value"] == pytest.approx(area_under_roc(labels[1:] == 0, good[1:, 0])) and found[0]["left_out"] == 1
    )
    assert len(score_zero_shot(labels[labels < 2], good[labels < 2, :2], ["a", "b"], n=50)) == 1, "binary"
    with pytest.raises(ValueError, match="class b has no positive sample"):
        score_zero_shot(findings * [[1, 0]], good[:, :2], ["a", "b"], n=50)
