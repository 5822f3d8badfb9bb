# SPDX-License-Identifier: Apache-2.0
"""The reports of the example cohort: true, varied, one a study, and read back sentence by sentence."""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict

import numpy as np
import pyarrow as pa
import pytest

from monai_ssl.data import EXAMPLE_FINDINGS, find_sections, finding_sentences, make_example_radiographs, open_reports
from monai_ssl.data.phantom_patient import Lesion, draw_patient, random_stream
from monai_ssl.data.phantom_report import _ABSENT, _NORMAL, _REMARKS, _SUMMARY, _words, write_report

WORDS = {
    "nodule": r"nodul|coin lesion|round lesion",
    "consolidation": r"consolidation|airspace|pneumoni|infiltrate|opacification|zone",
    "effusion": r"effusion|pleural fluid|costophrenic|fluid",
    "cardiomegaly": r"heart|cardiac|cardio(megaly|thoracic)",
    "pneumothorax": r"pneumothora|pleural line|chest wall|fully expanded|pleural space",
}
DENIALS = r"\b(no|not|negative|free|normal|sharp)\b|within normal|both lungs reach|fully expanded"


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> list[dict]:
    folder = make_example_radiographs(tmp_path_factory.mktemp("reports") / "example", 40, (1, 3), 64, seed=3)
    with (folder / "labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def texts() -> list[tuple[set[str], str]]:
    """Findings and reports, five for each of 60 patients."""
    patients = [draw_patient(5, number) for number in range(60)]
    return [
        (
            {lesion.finding for lesion in patient.lesions},
            write_report(patient, ["PA"], random_stream(5, "r", number, k)),
        )
        for number, patient in enumerate(patients)
        for k in range(5)
    ]


def test_images_of_a_study_share_its_report(rows):
    reports, studies, per_study = defaultdict(set), defaultdict(set), Counter()
    for row in rows:
        assert row["study_id"].startswith(f"{row['patient_id']}-S")
        reports[row["study_id"]].add(row["report"])
        studies[row["patient_id"]].add(row["study_id"])
        per_study[row["study_id"]] += 1
    assert all(len(own) == 1 for own in reports.values())
    assert len({next(iter(own)) for own in reports.values()}) == len(reports), "each study in its own words"
    assert 1 in per_study.values() and max(per_study.values()) > 1 and max(map(len, studies.values())) > 1


def test_they_are_read_as_reports(rows):
    columns = {"path": "file", "group_id": "patient_id", "visit": "study_id", "report": "report"}
    table = pa.table({name: [row[column] for row in rows] for name, column in columns.items()})
    store = type("Store", (), {"table": table, "folder": "example", "__len__": lambda self: len(table)})()
    reports = open_reports(store)
    assert len(reports.rows) == len(rows) and len(reports.refused) == 0
    numbers = {row["study_id"]: number for row, number in zip(rows, reports.study.tolist(), strict=True)}
    assert len(set(numbers.values())) == len(numbers) == reports.counts["studies of these"]
    assert np.array_equal(open_reports(store, study_column="visit").study, reports.study)
    assert not any(re.search(r"___|\[\*\*|<DATE>|rule out|tuberculin", text) for text in reports.texts())
    for row, own in zip(rows, reports.sentences, strict=True):
        for finding in EXAMPLE_FINDINGS:
            claims = [s for s in own if s in _ABSENT[finding]]
            assert not claims or row[finding] == "0"
        if row["label"] == "normal":
            assert set(own) & set(_NORMAL)


@pytest.mark.parametrize("finding", EXAMPLE_FINDINGS)
def test_what_is_said_is_true(texts, finding):
    """Each sentence of findings and impression is taken apart by its words, without looking at the writer's tables."""
    affirmed = denied = 0
    for present, report in texts:
        sections = find_sections(report)
        told = [s.text for s in sections if not s.names or {"findings", "impression"} & set(s.names)]
        sentences = [part for text in told for part in re.split(r"(?<=[a-z])[.](?=\s|$)", text) if part.strip()]
        about = [s for s in sentences if re.search(WORDS[finding], s, re.IGNORECASE) and not _says_normal(s)]
        claims = [s for s in about if not re.search(DENIALS, s, re.IGNORECASE)]
        denials = [s for s in about if re.search(DENIALS, s, re.IGNORECASE)]
        if finding in present:
            assert claims, (finding, report)
            affirmed += 1
        else:
            claims = [s for s in claims if not re.search("|".join(WORDS[p] for p in present) or "$^", s, re.IGNORECASE)]
            assert not claims, (finding, claims, report)
            denied += bool(denials)
    assert affirmed > 20 and denied > 50


def _says_normal(sentence: str) -> bool:
    return any(text.strip(".") in sentence for text in (*_NORMAL, *_REMARKS))


def test_wordings_vary():
    for finding in EXAMPLE_FINDINGS:
        for present in (True, False):
            sentences = finding_sentences(finding, present)
            assert len(set(sentences)) >= 8 and all(len(s.split()) >= 3 and "{" not in s for s in sentences)
            assert all(bool(re.search(DENIALS, s, re.IGNORECASE)) != present for s in sentences), sentences
    assert not set(finding_sentences("nodule")) & set(finding_sentences("nodule", False))
    with pytest.raises(ValueError, match="no finding 'mass'"):
        finding_sentences("mass")


def test_every_wording_and_style_is_used(texts):
    whole = "\n".join(report for _, report in texts)
    for finding in EXAMPLE_FINDINGS:
        assert all(sentence in whole for sentence in _ABSENT[finding])
    headings = Counter(tuple(sorted({name for s in find_sections(report) for name in s.names})) for _, report in texts)
    assert 0.07 < headings[()] / len(texts) < 0.25, "some have no headings"
    assert any("technique" in names and "comparison" in names for names in headings)
    assert "FINDINGS:" in whole and "Findings\n" in whole and "IMPRESSION AND PLAN:" in whole and "1. " in whole
    assert len({report for _, report in texts}) == len(texts)


@pytest.mark.parametrize(
    ("lesions", "words"),
    [
        ([Lesion("effusion", -1, size=4.2)], {"side": "right", "degree": "small"}),
        ([Lesion("effusion", -1, size=4.2), Lesion("effusion", 1, size=8.0)], {"side": "left", "degree": "large"}),
        ([Lesion("cardiomegaly", strength=1.0)], {"degree": "moderate"}),
        ([Lesion("pneumothorax", 1, size=0.55)], {"side": "left", "degree": "large"}),
        ([Lesion("consolidation", -1, down=0.3, size=4.0, strength=0.9)],
         {"side": "right", "zone": "upper", "degree": "dense", "cm": "8.0"}),
        ([Lesion("nodule", -1, size=1.5)] * 3, {"degree": "a few", "lungs": "in the right lung", "cm": "3.0"}),
        ([Lesion("nodule", -1), Lesion("nodule", 1, size=2.0)] * 3, {"degree": "multiple", "lungs": "in both lungs"}),
    ],
)  # fmt: skip
def test_side_degree_and_place_are_the_lesions(lesions, words):
    assert words.items() <= _words(lesions).items()


def test_impressions_name_every_finding(texts):
    for present, report in texts:
        last = find_sections(report)[-1].text
        for finding in present:
            assert re.search(WORDS[finding], last, re.IGNORECASE), (finding, last)
    assert set(_SUMMARY) == set(EXAMPLE_FINDINGS)
