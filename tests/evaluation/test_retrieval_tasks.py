# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from monai_ssl.evaluation import class_retrieval, report_retrieval, score_retrieval


def noise(count, width=24, seed=0):
    return normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_the_right_report_among_all():
    reports = noise(30)
    owner = np.repeat(np.arange(30), 2)  # frontal and lateral
    images = normalize(reports[owner] + 0.05 * noise(60, seed=1), dim=1)
    to_report, to_image = report_retrieval(images, reports, owner, patients=owner // 2)
    assert to_report.relevant.sum() == to_image.relevant.sum() == 60
    for task, queries, items in ((to_report, 60, 30), (to_image, 30, 60)):
        chance = score_retrieval(report_retrieval(noise(60, seed=2), noise(30, seed=3), owner)[task is to_image], n=50)
        rows = score_retrieval(task, n=50)
        assert [(row["k"], row["value"], row["queries"], row["items"]) for row in rows] == [
            (k, 1.0, queries, items) for k in (1, 5, 10)
        ]
        assert rows[0]["groups"] == 15 and rows[0]["unit"] == "patients" and rows[0]["median_rank"] == 1
        assert chance[1]["over_chance_low"] < 0 < chance[1]["over_chance_high"]
    assert score_retrieval(to_report, n=50)[1]["chance"] == pytest.approx(5 / 30)
    assert score_retrieval(to_image, n=50)[0]["chance"] == pytest.approx(2 / 60)


def test_a_second_model_is_compared_on_the_same_queries():
    reports, owner = noise(40), np.arange(40)
    good = report_retrieval(normalize(reports + 0.1 * noise(40, seed=1), dim=1), reports, owner)[0]
    bad = report_retrieval(noise(40, seed=2), noise(40, seed=3), owner)[0]
    row = score_retrieval(good, bad, n=200)[0]
    assert row["over_other"] == pytest.approx(row["value"] - row["other"]) and row["over_other_p"] < 0.05
    with pytest.raises(ValueError, match="image to report: the second model was asked other queries"):
        score_retrieval(good, report_retrieval(noise(3), noise(3), np.arange(3))[0])


def test_classes_are_found_but_never_the_patient_itself():
    classes = np.arange(40) % 4
    patients = np.arange(40) // 2
    vectors = torch.nn.functional.one_hot(torch.from_numpy(classes)).float()
    task = class_retrieval(
        "image to image", vectors, vectors, classes, classes, query_patients=patients, item_patients=patients, ks=(5, 9)
    )
    assert not any(patients[item] == patients[query] for query in range(40) for item, _, _ in task.first(query, 40))
    rows = score_retrieval(task, n=50)
    assert [row["value"] for row in rows[:2]] == [1.0, 1.0] and rows[0]["chance"] == pytest.approx(9 / 38)
    assert [row["class"] for row in rows[2::2]] == ["0", "1", "2", "3"]
    assert all(cosine == 1.0 and right for _, cosine, right in task.first(0, 9))


def test_sentences_that_rank_alike_are_no_independent_witnesses():
    """A hundred copies of one question about thirty patients: chance is in the images."""
    classes, patients = np.arange(60) % 2, np.arange(60) // 2
    items, asked = noise(60), np.zeros(100, int)
    queries = noise(1, seed=5).repeat(100, 1)
    naive = class_retrieval("text to image", queries, items, asked, classes, ks=(10,))
    honest = class_retrieval("text to image", queries, items, asked, classes, ks=(10,), item_patients=patients)
    first, second = (score_retrieval(task, n=100)[0] for task in (naive, honest))
    assert first["value"] == second["value"] and (second["groups"], second["unit"]) == (30, "patients")
    assert first["value_high"] - first["value_low"] < 1e-6, "the queries alone would know no doubt"
    assert second["value_high"] - second["value_low"] > 0.2
    assert second["over_chance_low"] < 0 < second["over_chance_high"]


def test_findings_and_unknown_classes():
    """Items have findings; a sentence asks for one, and items where it is unknown are no candidates."""
    findings = np.array([[1, 0], [1, 1], [0, 1], [-1, 0], [0, -1]])
    items = torch.eye(2)[[0, 0, 1, 0, 1]]
    queries, asked = torch.eye(2)[[0, 0, 1]], np.array([0, 0, 1])
    task = class_retrieval("text to image", queries, items, asked, findings, ks=(1, 99), class_names=["a", "b"])
    assert task.relevant.tolist() == [[True, True, False, False, False]] * 2 + [[False, True, True, False, False]]
    assert [place for place, _, _ in task.first(0, 5)][-1] != 3 and len(task.first(0, 5)) == 4
    rows = score_retrieval(task, n=30)
    assert [row["k"] for row in rows] == [1, 1, 1]
    for row, chance in zip(rows, (0.5, 0.5, 0.5), strict=True):
        assert (row["value"], row["chance"], row["over_chance"]) == (1.0, pytest.approx(chance), pytest.approx(0.5))
        assert row["value_low"] is row["over_chance_p"] is row["other"] is None, "three sentences have no interval"
    known = class_retrieval("x", items, items, np.array([0, 0, 1, -1, 1]), np.array([0, 0, 1, -1, 1]), ks=(1,))
    assert len(known.similarity) == 4 and (known.similarity[:, 3] == -torch.inf).all()


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="not of one space"):
        report_retrieval(noise(3, 4), noise(3, 5), np.arange(3))
    with pytest.raises(ValueError, match="each report an image"):
        report_retrieval(noise(3), noise(3), np.zeros(3, int))
    with pytest.raises(ValueError, match="do not fit 3 queries and 2 items"):
        class_retrieval("x", noise(3), noise(2), np.zeros(2), np.zeros(2))
