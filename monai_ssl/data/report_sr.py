# SPDX-License-Identifier: Apache-2.0
"""Reports in DICOM: the text of structured reports (Basic Text SR and its richer kin), by study.

The templates are PS3.16 TID 2000 to 2006: containers named by a heading (CID 7001), texts within them by what they are
(CID 7002). Only the elements of ``_TAGS`` are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pydicom
from pydicom.dataset import Dataset

from monai_ssl.data.dicom import dicom_identifiers, header_text, looks_like_bare_dicom, quiet_pydicom
from monai_ssl.data.index import list_files
from monai_ssl.data.report_sections import Section, find_sections
from monai_ssl.data.report_sources import FoundReport, FoundReports
from monai_ssl.data.scan import hashed_identifiers

_SR_STORAGE = "1.2.840.10008.5.1.4.1.1.88."  # PS3.4 section B.5: all structured reports
_TAGS = [
    *("SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "PatientID", "StudyInstanceUID", "SeriesInstanceUID"),
    *("ContentDate", "ContentTime", "ValueType", "ConceptNameCodeSequence", "ContentSequence"),
]
_MAX_DEPTH = 32

# Concepts whose section needs no look at the words (PS3.16 CID 7001 and 7002): code values of DCM, LOINC and, for
# documents before 2017, the retired DCM codes of headings.
_SECTION_OF_CODE = {
    **dict.fromkeys(("121070", "121071", "59776-5"), "findings"),
    **dict.fromkeys(("121072", "121073", "19005-8", "121076", "121077", "55110-1", "121111", "55112-7"), "impression"),
    **dict.fromkeys(("121109", "18785-6", "121062", "55115-0"), "indication"),
    **dict.fromkeys(("121060", "11329-0", "121110", "55108-5", "55752-0"), "history"),
    **dict.fromkeys(("121068", "121069", "18834-2", "121066", "55114-3"), "comparison"),
    **dict.fromkeys(("121064", "121065", "55111-9", "73569-6"), "technique"),
    **dict.fromkeys(("121074", "121075", "18783-1"), "recommendation"),
    **dict.fromkeys(("121078", "55107-7", "73568-8", "55109-3", "116224001"), "other"),
}


def reports_in_sr(table: pa.Table, folder: str | Path, headings: Mapping[str, str], salt: bytes) -> FoundReports:
    """Reports from the structured reports below a folder, by the hash of StudyInstanceUID (0020,000D).

    Several documents of one study are one report, in the order of their content's date and time; parts that say the
    same in the same words count once. A study whose document names a patient whom the table knows as another one is
    refused.

    Raises:
        FileNotFoundError: if there is no such folder, or no structured report in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of structured reports")
    paths = [folder / name for name, *_ in list_files(folder)[0]]
    documents = [document for path in paths if (document := _read(path, headings, salt)) is not None]
    if not documents:
        raise FileNotFoundError(f"{folder}: no DICOM structured reports in it")
    by_study: dict[str | None, list[dict]] = {}
    for document in sorted(documents, key=lambda document: document["order"]):
        by_study.setdefault(document["study"], []).append(document)
    studies = table["study"].to_pylist()
    patients = table["patient"].to_pylist() if "patient" in table.column_names else [None] * len(table)
    patient_of = dict(zip(studies, patients, strict=True))
    known = set(patients) - {None}
    numbers, reports = {}, []
    for study in dict.fromkeys(studies):
        if study is None or study not in by_study:
            continue
        own = by_study[study]
        strangers = {document["patient"] for document in own} & known - {patient_of[study]}
        parts = dict.fromkeys(section for document in own for section in document["sections"])
        faults = [document["fault"] for document in own if document["fault"]]
        if strangers:
            fault = "its structured report is of another patient"
        else:
            fault = faults[0] if faults and not parts else None
        numbers[study] = len(reports)
        reports.append(FoundReport(list(parts), fault))
    unmatched = sum(len(own) for study, own in by_study.items() if study not in numbers)
    return FoundReports(reports, [numbers.get(study, -1) for study in studies], {}, unmatched)


def _read(path: Path, headings: Mapping[str, str], salt: bytes) -> dict[str, Any] | None:
    """Facts and text of a structured report; None for any other file."""
    facts: dict[str, Any] = {
        "study": None,
        "patient": None,
        "order": ("", "", str(path)),
        "sections": [],
        "fault": None,
    }
    with quiet_pydicom():
        try:
            with path.open("rb") as file:
                head = file.read(132)
            magic = head[128:] == b"DICM"
            if not magic and not looks_like_bare_dicom(head):
                return None
            kind = pydicom.dcmread(path, force=not magic, specific_tags=["SOPClassUID"], stop_before_pixels=True)
        except Exception:
            return None  # what does not even say that it is a report is none
        if not header_text(kind, "SOPClassUID").startswith(_SR_STORAGE):
            return None
        try:
            data = pydicom.dcmread(path, force=not magic, specific_tags=_TAGS)
            facts |= hashed_identifiers(dicom_identifiers(data), salt)
            facts["order"] = (header_text(data, "ContentDate"), header_text(data, "ContentTime"), str(path))
            facts["sections"] = list(_sections(data, headings, (), 0))
        except Exception:  # headers are hostile, and the error's text may quote this one
            return facts | {"fault": "its structured report is broken"}
    return facts | ({} if facts["sections"] else {"fault": "its structured report holds no text"})


def _sections(item: Dataset, headings: Mapping[str, str], names: tuple[str, ...], depth: int) -> Iterator[Section]:
    """Texts of a content tree, each with the section that its nearest named ancestor, or its own name, says."""
    names = _section_of(item, headings) or names
    if header_text(item, "ValueType") == "TEXT":
        text = str(item.get("TextValue") or "").strip()
        parts = find_sections(text, headings)
        if any(part.names for part in parts):  # a whole report in one text
            yield from (Section(part.names or names, part.text) for part in parts if part.text)
        elif text:
            yield Section(names, text)
    if depth < _MAX_DEPTH:
        for child in item.get("ContentSequence") or []:
            yield from _sections(child, headings, names, depth + 1)


def _section_of(item: Dataset, headings: Mapping[str, str]) -> tuple[str, ...]:
    concepts = item.get("ConceptNameCodeSequence") or []
    if not concepts:
        return ()
    code = header_text(concepts[0], "CodeValue")
    if code in _SECTION_OF_CODE and not header_text(concepts[0], "CodingSchemeDesignator").startswith("99"):  # private
        return (_SECTION_OF_CODE[code],)
    meaning = header_text(concepts[0], "CodeMeaning")
    found = find_sections(f"{meaning}:\n.", headings) if meaning else []
    return found[0].names if len(found) == 1 else ()
