# SPDX-License-Identifier: Apache-2.0
"""Every image finds its report, whatever holds it; what cannot be used has a reason that quotes nothing."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import BasicTextSRStorage
from synthetic_dicom import make_dicom, write_dicom

from monai_ssl.data import Reports, open_radiographs, open_reports
from monai_ssl.data.hashing import hash_identifier

SECRET = "Haemangiopericytoma"  # stands for text that must show up nowhere
REPORT = f"HISTORY: Cough for days.\nFINDINGS: {SECRET} of the lung. No effusion.\nIMPRESSION: Call the surgeon now."
SENTENCES = [f"{SECRET} of the lung.", "Call the surgeon now."]
NO_REPORT = "no report"
SALT = b"salt of the tests"


def store_of(tmp_path: Path | None = None, **columns) -> SimpleNamespace:
    """What ``open_reports`` needs of a store."""
    table = pa.table(columns)
    if "path" not in columns:
        table = table.append_column("path", pa.array([f"images/{row}.png" for row in range(len(table))]))
    folder = Path("cache/store") if tmp_path is None else tmp_path / "store"
    return type("Store", (), {"table": table, "folder": folder, "__len__": lambda self: len(table)})()


def reasons(reports: Reports) -> dict[int, str]:
    return dict(zip(reports.refused["row"].to_pylist(), reports.refused["reason"].to_pylist(), strict=True))


# A column


def test_reports_of_a_column():
    store = store_of(
        group_id=["a", "a", "a", "b", "b", "c", None],
        report=[REPORT, REPORT, "Clear lungs on both sides.", REPORT, None, " ", "Normal heart size here."],
    )
    reports = open_reports(store)
    assert reports.sentences == [
        *(SENTENCES, SENTENCES, ["Clear lungs on both sides."], SENTENCES, [], [], ["Normal heart size here."])
    ]
    assert reports.rows.tolist() == [0, 1, 2, 3, 6]
    assert reports.study.tolist() == [0, 0, 1, 2, 3, 4, 5], "one text of one patient is one report, of two it is two"
    assert reasons(reports) == {4: NO_REPORT, 5: NO_REPORT}
    assert reports.refused["path"].to_pylist() == ["images/4.png", "images/5.png"]
    assert reports.counts["sentences under 3 words dropped"] == 2 and reports.counts["reports"] == 4
    assert reports.texts() == [*SENTENCES, "Clear lungs on both sides.", "Normal heart size here."]
    assert reports.texts([6, 2]) == ["Normal heart size here.", "Clear lungs on both sides."]
    assert reports.among([5, 3, 0]).tolist() == [3, 0]
    assert reports.among(np.arange(7) > 2).tolist() == [3, 6]


def test_studies_join_images():
    columns = {"group_id": ["a", "a", "a", "b", "b"], "report": [f"Text number {row} here." for row in range(5)]}
    assert open_reports(store_of(**columns)).study.tolist() == [0, 1, 2, 3, 4]
    hashed = store_of(**columns, study=["x", "y", "x", None, None])
    assert open_reports(hashed).study.tolist() == [0, 1, 0, 2, 3], "the header's study, where there is one"
    numbered = store_of(**columns, study=["x", "y", "x", None, None], visit=[1, 1, 2, 1, 1])
    assert open_reports(numbered, study_column="visit").study.tolist() == [0, 0, 1, 2, 2], "visits are a patient's"
    chain = store_of(
        group_id=["a"] * 3, study=["x", "x", "y"], text=["One two three.", "Four five six.", "Four five six."]
    )
    assert open_reports(chain).study.tolist() == [0, 0, 0], "study and report both join"


def test_unusable_reports_have_reasons():
    store = store_of(
        report=[
            *("HISTORY: Cough for three days.", "FINDINGS: Normal. No change.", "word " * 30),
            *("FINDINGS: Clear lungs, normal heart.", "FINDINGS:", "Kein gr\ufffd\ufffderer Erguss."),
        ]
    )
    reports = open_reports(store, max_chars=100, max_refused_fraction=0.9)
    assert reasons(reports) == {
        0: "the report has headings, but nothing under findings or impression",
        1: "the report has no sentence of 3 words or more",
        2: "the report is longer than 100 characters",
        4: "the report is empty",
        5: "every sentence of the report has characters that were lost when it was decoded (U+FFFD)",
    }
    assert reports.counts["sentences with lost characters dropped"] == 1
    assert open_reports(store, sections=None, min_words=1, max_refused_fraction=0.8).rows.tolist() == [0, 1, 2, 3]
    assert open_reports(store, sections="history", max_refused_fraction=1).rows.tolist() == [0, 2]


def test_it_stops_when_too_many_cannot_be_used_and_quotes_none(caplog):
    caplog.set_level(logging.DEBUG)
    store = store_of(report=[f"HISTORY: {SECRET} long ago."] * 2 + [REPORT], group_id=["a", "b", "c"])
    with pytest.raises(
        RuntimeError, match=r"2 of 3 images cannot be used \(allowed: 50%\): 2 x the report has"
    ) as stop:
        open_reports(store)
    reports = open_reports(store, max_refused_fraction=0.7)
    shown = [str(stop.value), caplog.text, repr(reports), reports.describe(), str(reports.refused), str(reports.counts)]
    assert all(SECRET not in text for text in shown)
    assert "2: the report has headings" in reports.describe() and "1 with sentences" in caplog.text
    many = store_of(report=[REPORT, *[None] * 99])
    assert open_reports(many).rows.tolist() == [0], "images without a report are no fault"
    with pytest.raises(RuntimeError, match="none of 2 images has a report"):
        open_reports(store_of(report=[None, ""]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_column": "reprot"}, "no column 'reprot'; did you mean 'report'"),
        ({"text_column": "age"}, "the column 'age' holds int64, not text"),
        ({"text_column": "report", "text_folder": "x"}, "come from one source"),
        ({"study_column": "visit"}, "no column 'visit'"),
        ({"sections": ["findngs"]}, "did you mean 'findings'"),
        ({"min_words": 0}, "min_words is 0"),
        ({"max_refused_fraction": 2}, r"max_refused_fraction 2 \(0 to 1\)"),
        ({"dicom_sr": "x"}, "no column 'study'"),
        ({"other_encoding": "latin99"}, "other_encoding is 'latin99'"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        open_reports(store_of(report=[REPORT], age=[3]), **options)
    with pytest.raises(ValueError, match="no column 'report' or 'text'"):
        open_reports(store_of(age=[3]))


# Text files


def write(folder: Path, **texts: str | bytes) -> Path:
    for name, text in texts.items():
        path = folder / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


def test_text_files_named_like_images_folders_or_studies(tmp_path):
    uid = "1.2.840.99.7"
    paths = ["p1/a.png", "p1/b.png", "p2/a.png", "p3/s1/x.dcm", "p3/s1/y.dcm", "p4/z.nii.gz", "p5/1.2.3", "p6/q.png",
             "p7/r.png", "p8/ct#1", "p9/none.png"]  # fmt: skip
    store = store_of(
        path=paths,
        group_id=["1", "1", "2", "3", "3", "4", "5", "6", "7", "8", "9"],
        study=[None] * 7 + [hash_identifier(uid, SALT, "study")] + [None] * 3,
        file=[None] * 8 + ["deep/named.txt", None, None],
    )
    names = {
        "p1/a": 0,
        "p1/b": 1,
        "p2/a": 2,
        "s1": 3,
        "sub/z": 5,
        "1.2.3": 6,
        uid: 7,
        "deep/named": 8,
        "ct": 9,
        "lone": 10,
    }
    folder = write(tmp_path / "reports", **{name: f"Report of number {row}." for name, row in names.items()})
    (folder / ".hidden.txt").write_text("Not a report at all.")
    reports = open_reports(store, text_folder=folder, study_column="file", salt=SALT)
    assert [own[0] if own else None for own in reports.sentences] == [
        f"Report of number {row}." if row < 10 else None for row in (0, 1, 2, 3, 3, 5, 6, 7, 8, 9, 10)
    ]
    assert reports.study.tolist() == [0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 9]
    assert reports.counts["reports that belong to no image"] == 1 and reasons(reports) == {10: NO_REPORT}
    (tmp_path / "index.salt").write_text(SALT.hex())
    found = open_reports(store_of(tmp_path, path=paths[7:8], study=store.table["study"][7:8]), text_folder=folder)
    assert found.sentences == [["Report of number 7."]], "the salt beside the store"


def test_one_report_for_two_patients_is_refused(tmp_path):
    store = store_of(path=["p1/a.png", "p2/a.png", "p2/b.png"], group_id=["1", "2", "2"])
    folder = write(tmp_path, a=REPORT, b=REPORT)
    reports = open_reports(store, text_folder=folder, max_refused_fraction=0.9)
    assert reasons(reports) == dict.fromkeys((0, 1), "its report is matched to images of several patients")
    assert reports.sentences == [[], [], SENTENCES]
    twice = write(tmp_path / "twice", **{"x/a": REPORT, "y/a": REPORT, "b": REPORT})
    reports = open_reports(store, text_folder=twice, max_refused_fraction=0.9)
    assert reasons(reports) == dict.fromkeys((0, 1), "several text files have the name of its report")


def test_encodings(tmp_path):
    text = "FINDINGS: Kein größerer Erguss rechts."
    files = {
        **{"0": text.encode(), "1": text.encode("utf-8-sig"), "2": text.encode("utf-16"), "3": text.encode("utf-32")},
        **{"4": text.encode("latin-1"), "5": text.encode("utf-16-le"), "6": b"", "7": b"x" * (1 << 20) + b"x"},
        "8": b"\x81\xff",
        "9": "\ufeffa".encode("utf-16-le") + b"\x00",
    }
    folder = write(tmp_path, **files)
    store = store_of(report=[None] * 10)
    reports = open_reports(store, text_folder=folder, max_refused_fraction=0.6)
    expected = ["Kein größerer Erguss rechts."]
    assert reports.sentences == [expected] * 4 + [[]] * 6
    assert reasons(reports) == {
        4: "the text file is not UTF-8",
        5: "the text file is not UTF-8",
        6: "the report is empty",
        7: "the text file is larger than 1 MiB",
        8: "the text file is not UTF-8",
        9: "the text file is not in the encoding that its byte-order mark says",
    }
    reports = open_reports(store, text_folder=folder, other_encoding="cp1252", max_refused_fraction=0.6)
    assert reports.sentences[4] == expected and reports.counts["reports in the other encoding"] == 1
    assert reasons(reports)[5].startswith("the text file holds NUL characters")
    assert reasons(reports)[8] == "the text file is neither UTF-8 nor cp1252"
    with pytest.raises(FileNotFoundError, match="no such folder of reports"):
        open_reports(store, text_folder=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no text files"):
        open_reports(store, text_folder=tmp_path / "empty")
    with pytest.raises(RuntimeError, match="none of 1 images has a report, and 10 reports belong to no image"):
        open_reports(store_of(path=["other.png"]), text_folder=folder)


# DICOM structured reports


def concept(meaning: str, code: str = "1", scheme: str = "99TEST") -> Sequence:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code, scheme, meaning
    return Sequence([item])


def node(kind: str, name: Sequence | None, text: str | None = None, *children: Dataset) -> Dataset:
    item = Dataset()
    item.RelationshipType, item.ValueType = "CONTAINS", kind
    if name is not None:
        item.ConceptNameCodeSequence = name
    if text is not None:
        item.TextValue = text
    if children:
        item.ContentSequence = Sequence(children)
    return item


def write_sr(path: Path, study: str, *children: Dataset, patient: str = "P-1", time: str = "10", **elements) -> None:
    data = make_dicom(None, Modality="SR", StudyInstanceUID=study, PatientID=patient, ContentDate="20260101")
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = BasicTextSRStorage
    data.ContentTime = f"{time}0000"
    data.SpecificCharacterSet = "ISO_IR 100"
    data.update(node("CONTAINER", concept("Diagnostic Imaging Report", "18748-4", "LN"), None, *children))
    for name, value in elements.items():
        setattr(data, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)


def sr_store(studies: list[str], patients: list[str]) -> SimpleNamespace:
    hashed = [hash_identifier(patient, SALT, "patient") for patient in patients]
    names = [hash_identifier(study, SALT, "study") for study in studies]
    return store_of(study=names, patient=hashed, group_id=hashed)


def test_structured_reports_by_study(tmp_path):
    findings = node("TEXT", concept("Finding", "121071", "DCM"), f"{SECRET} of the größten lung.")
    write_sr(
        tmp_path / "1",
        "1.2.1",
        node(
            "CONTAINER", concept("History", "11329-0", "LN"), None, node("TEXT", concept("History"), "Cough for days.")
        ),
        node("CONTAINER", concept("Befunde"), None, node("TEXT", None, "By the heading's words.")),
        node("CONTAINER", concept("Findings", "59776-5", "LN"), None, findings),
        node("TEXT", concept("Impression", "121073", "DCM"), "Call the surgeon now."),
        node("PNAME", concept("Person Observer Name", "121008", "DCM")),
    )
    write_sr(tmp_path / "deep/2.dcm", "1.2.2", node("TEXT", concept("Report"), REPORT), patient="P-2")
    write_sr(
        tmp_path / "3", "1.2.3", node("TEXT", concept("Remark"), "Later text, no heading."), patient="P-3", time="11"
    )
    write_sr(tmp_path / "4", "1.2.3", node("TEXT", concept("Remark"), "Earlier text, no heading."), patient="P-3")
    write_sr(tmp_path / "5", "1.2.3", node("TEXT", concept("Remark"), "Earlier text, no heading."), patient="P-3")
    write_sr(tmp_path / "6", "1.2.9", node("TEXT", None, "Belongs to no image here."))
    write_dicom(tmp_path / "image", np.zeros((4, 4), np.uint16), StudyInstanceUID="1.2.1")
    (tmp_path / "notes.txt").write_text("no DICOM")
    store = sr_store(["1.2.1", "1.2.1", "1.2.2", "1.2.3", "1.2.4"], ["P-1", "P-1", "P-2", "P-3", "P-4"])
    reports = open_reports(store, dicom_sr=tmp_path, salt=SALT)
    first = ["By the heading's words.", f"{SECRET} of the größten lung.", "Call the surgeon now."]
    assert reports.sentences == [
        *(first, first, SENTENCES, ["Earlier text, no heading.", "Later text, no heading."], [])
    ]
    assert reports.study.tolist() == [0, 0, 1, 2, 3] and reasons(reports) == {4: NO_REPORT}
    assert reports.counts["reports that belong to no image"] == 1


def test_structured_reports_that_cannot_be_used(tmp_path):
    write_sr(tmp_path / "1", "1.2.1", node("TEXT", None, "Of another patient here."), patient="P-2")
    write_sr(tmp_path / "2", "1.2.2", node("CODE", concept("Finding")), patient="P-2")
    write_sr(tmp_path / "3", "1.2.3", node("TEXT", None, "Anonymised otherwise, still fine."), patient="unheard of")
    write_sr(tmp_path / "4", "1.2.4", node("TEXT", None, "A report of its own."), patient="P-4")
    whole = (tmp_path / "4").read_bytes()
    (tmp_path / "5").write_bytes(whole[: len(whole) - 20])
    (tmp_path / "4").unlink()
    write_sr(tmp_path / "6", "1.2.5", patient="P-5")
    broken = pydicom.dcmread(tmp_path / "6")
    broken.add_new("ContentSequence", "LO", "no sequence")
    broken.save_as(tmp_path / "6")
    store = sr_store([f"1.2.{k}" for k in range(1, 6)], [f"P-{k}" for k in range(1, 6)])
    reports = open_reports(store, dicom_sr=tmp_path, salt=SALT, max_refused_fraction=0.9)
    told = reasons(reports)
    assert told[0] == "its structured report is of another patient"
    assert told[1] == "its structured report holds no text"
    assert 2 not in told
    assert told[3] == "its structured report holds no text", "cut off"
    assert told[4] == "its structured report is broken"
    with pytest.raises(ValueError, match=r"no index\.salt beside it"):
        open_reports(store, dicom_sr=tmp_path)
    with pytest.raises(RuntimeError, match="whether the salt is that of the index"):
        open_reports(store, dicom_sr=tmp_path, salt=b"another")
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match="no DICOM structured reports"):
        open_reports(store, dicom_sr=tmp_path / "none", salt=SALT)


def test_structured_reports_beside_radiographs(tmp_path):
    """The index hashes the studies of the images, and its salt those of the reports."""
    random = np.random.default_rng(0)
    for number, study in enumerate(("1.2.1", "1.2.1", "1.2.2")):
        pixels = random.integers(0, 4000, (40, 30), dtype=np.uint16)
        write_dicom(tmp_path / f"images/{number}", pixels, bits=12, StudyInstanceUID=study, PatientID=f"P-{study}")
    write_sr(tmp_path / "images/sr1", "1.2.1", node("TEXT", concept("Report"), REPORT), patient="P-1.2.1")
    write_sr(tmp_path / "images/sr2", "1.2.2", node("TEXT", None, "Clear lungs on both sides."), patient="P-1.2.2")
    store = open_radiographs(
        tmp_path / "images", tmp_path / "cache", num_workers=0, progress=False, drop_duplicates=False
    )
    reports = open_reports(store, dicom_sr=tmp_path / "images")
    assert reports.sentences == [SENTENCES, SENTENCES, ["Clear lungs on both sides."]]
    assert reports.study.tolist() == [0, 0, 1]
    assert SECRET not in str(store.table.to_pylist()) and SECRET not in str(store.refused.to_pylist())


# Real reports


@pytest.mark.realdata
def test_real_texts_of_radiographs(real_data):
    with (real_data / "radiographs/radiographs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = {"path": "file", "group_id": "group_id", "text": "text"}
    store = store_of(**{name: [row[column] or None for row in rows] for name, column in columns.items()})
    reports = open_reports(store)
    having = [row for row, values in enumerate(rows) if values["has_text"] == "1"]
    assert len(having) == 230
    usable = np.isin(having, reports.rows)
    assert usable.mean() > 0.95, reports.describe()
    assert 800 < sum(len(reports.sentences[row]) for row in having) < 1300
    lengths = [len(sentence.split()) for row in having for sentence in reports.sentences[row]]
    assert 8 < np.median(lengths) < 25
    patients = np.array([row["group_id"] for row in rows])
    for study in np.unique(reports.study[reports.rows]):
        assert len(set(patients[reports.study == study])) == 1


@pytest.mark.realdata
def test_real_questions_and_answers(real_data):
    with (real_data / "image_text_vqarad/images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    store = store_of(
        path=[row["image"] for row in rows], group_id=[row["group_id"] for row in rows], text=[r["text"] for r in rows]
    )
    reports = open_reports(store)
    assert len(reports.rows) == len(rows) == 253
    assert np.mean([sentence.endswith("?") for own in reports.sentences for sentence in own]) > 0.4
