# SPDX-License-Identifier: Apache-2.0
"""The sentences of the report of every image of a store, and for every image without any the reason."""

from __future__ import annotations

import codecs
import collections
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from monai_ssl.data.datasets import row_numbers
from monai_ssl.data.hashing import load_salt
from monai_ssl.data.report_sections import check_sections, choose_sections, section_headings
from monai_ssl.data.report_sentences import count_words, split_sentences
from monai_ssl.data.report_sources import (
    EMPTY,
    NO_REPORT,
    FoundReport,
    FoundReports,
    reports_in_column,
    reports_in_folder,
)
from monai_ssl.data.report_sr import reports_in_sr
from monai_ssl.data.report_studies import number_studies, of_several_patients
from monai_ssl.data.store import ImageStore
from monai_ssl.data.tables import require_columns

__all__ = ["Reports", "open_reports"]

logger = logging.getLogger(__name__)

_OTHERS = "its report is matched to images of several patients"
_LOST = "every sentence of the report has characters that were lost when it was decoded (U+FFFD)"
_REFUSED_SCHEMA = pa.schema([("row", pa.int64()), ("path", pa.string()), ("reason", pa.string())])
_UNMATCHED = "reports that belong to no image"


@dataclass(frozen=True)
class Reports:
    """Sentences of the images of a store. Text stays out of ``repr``, ``describe`` and the tables.

    Args:
        sentences: for each row of ``store.table`` the sentences of its report, empty where there is none. Images of one
            report share the list.
        study: int64 (rows,): images of one study, or of one report, have the same number.
        refused: a row for each image without sentences: ``row`` of ``store.table``, ``path``, ``reason``.
        counts: what was found, read and dropped, by name.
    """

    sentences: list[list[str]] = field(repr=False)
    study: np.ndarray = field(repr=False)
    refused: pa.Table = field(repr=False)
    counts: dict[str, int]

    @property
    def rows(self) -> np.ndarray:
        """Rows of ``store.table`` that have sentences, int64."""
        return np.flatnonzero([bool(own) for own in self.sentences])

    def among(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Those of some rows (numbers, or a mask) that have sentences, in their order: of a split, say."""
        rows = row_numbers(rows, len(self.sentences))
        return rows[np.isin(rows, self.rows)]

    def texts(self, rows: Sequence[int] | np.ndarray | None = None) -> list[str]:
        """Different sentences of some rows, in the order of their first appearance: what a tokenizer is trained on.

        Args:
            rows: rows of ``store.table``, or a mask; give those of the training only. None: all.
        """
        chosen = row_numbers(rows, len(self.sentences))
        return list(dict.fromkeys(sentence for row in chosen for sentence in self.sentences[row]))

    def describe(self) -> str:
        """Say in a few lines what there is and why the rest is not; no text."""
        lines = [", ".join(f"{count} {name}" for name, count in self.counts.items() if count)]
        reasons = collections.Counter(self.refused["reason"].to_pylist())
        lines += [f"  without text {count}: {reason}" for reason, count in reasons.most_common()]
        return "\n".join(lines)


def open_reports(
    store: ImageStore,
    *,
    text_column: str | None = None,
    text_folder: str | Path | None = None,
    dicom_sr: str | Path | None = None,
    study_column: str | None = None,
    sections: Sequence[str] | str | None = ("findings", "impression"),
    headings: Mapping[str, str] | None = None,
    min_words: int = 3,
    max_chars: int = 20_000,
    other_encoding: str | None = None,
    salt: str | bytes | None = None,
    max_refused_fraction: float = 0.5,
) -> Reports:
    """Read the report of every image of a store and cut it into sentences.

    Give one source. A report may belong to several images; images of one study, or of one report, share ``study``.

    * ``text_column``: a column of the labels' table. Equal texts of one patient are one report.
    * ``text_folder``: text files ``*.txt``. An image's report is the first of: the one that ``study_column`` names; the
      one with its own path or any end of it (of ``images/p7/1.dcm``: ``images/p7/1.txt``, ``p7/1.txt``, ``1.txt``), or
      its file name in any subfolder; the one called like the folder it lies in (``p7.txt``), again by any end of the
      path; the one called like its StudyInstanceUID. UTF-8, or what a byte-order mark says.
    * ``dicom_sr``: DICOM structured reports in any folders, matched by StudyInstanceUID (see ``report_sr``).

    Without a source it is the column ``report`` or ``text`` of the table.

    Args:
        store: the images.
        text_column, text_folder, dicom_sr: the source, see above.
        study_column: column of the table that names the study of an image, within its patient. Default: ``study``, the
            hash of StudyInstanceUID.
        sections: sections to keep, see ``find_sections``; a report without headings is taken whole. None: everything.
        headings: from a heading to its section; default: ``section_headings()``, seven languages.
        min_words: sentences of fewer words are dropped and counted (ConVIRT: 3).
        max_chars: a report with more characters in its sections is refused: it is a whole record, or several reports.
        other_encoding: what a text file is that is not UTF-8, ``"cp1252"`` say. None: such files are refused, since
            wrong letters look like words.
        salt: the secret of the index's identifiers, for names by StudyInstanceUID. Default: ``index.salt`` beside the
            store, where ``open_radiographs`` and ``open_volume_store`` put it.
        max_refused_fraction: stop if the reports of more than this share of the images that have one cannot be used.

    Raises:
        FileNotFoundError: if a folder is not there, or holds no report.
        ValueError: if there is no such column or section, several sources, or a wrong number.
        RuntimeError: if no image has a report that can be used, or too many reports cannot; the reasons are named.
    """
    _check_options(min_words, max_chars, max_refused_fraction, other_encoding)
    headings = section_headings() if headings is None else dict(headings)
    sections = check_sections(sections, headings)
    found = _find(store, text_column, text_folder, dicom_sr, study_column, headings, salt, other_encoding)
    strangers = of_several_patients(store.table, found.of_row)
    counts = collections.Counter()
    kept: list[tuple[list[str], str | None]] = []
    for number, report in enumerate(found.reports):
        sentences, fault = _sentences(report, sections, min_words, max_chars, counts)
        kept.append(([], _OTHERS) if number in strangers else (sentences, fault))
    nothing: tuple[list[str], str | None] = ([], NO_REPORT)
    of_row = [nothing if number < 0 else kept[number] for number in found.of_row]
    reasons = {row: fault for row, (_, fault) in enumerate(of_row) if fault is not None} | found.faults
    paths = store.table["path"].to_pylist()
    refused = pa.Table.from_pylist(
        [{"row": row, "path": paths[row], "reason": reasons[row]} for row in sorted(reasons)], schema=_REFUSED_SCHEMA
    )
    study = number_studies(store.table, study_column, found.of_row)
    with_text = [row for row in range(len(of_row)) if row not in reasons]
    used = {found.of_row[row] for row in with_text}
    summary = {
        "images": len(of_row),
        "with sentences": len(with_text),
        "studies of these": len(set(study[with_text].tolist())),
        "reports": len(used),
        "sentences": sum(len(kept[number][0]) for number in used),
        f"sentences under {min_words} words dropped": counts["short"],
        "sentences with lost characters dropped": counts["lost"],
        _UNMATCHED: found.unmatched,
        "reports in the other encoding": counts["other encoding"],
    }
    reports = Reports([sentences for sentences, _ in of_row], study, refused, summary)
    logger.info("%s: %s", store.folder, reports.describe())
    _check(reports, store, max_refused_fraction)
    return reports


def _check_options(min_words: int, max_chars: int, max_refused_fraction: float, other_encoding: str | None) -> None:
    if min_words < 1 or max_chars < 1 or not 0 <= max_refused_fraction <= 1:
        raise ValueError(
            f"min_words is {min_words} and max_chars {max_chars} (1 or more), "
            f"max_refused_fraction {max_refused_fraction} (0 to 1)"
        )
    try:
        codecs.lookup(other_encoding or "utf-8")
    except LookupError:
        raise ValueError(f"other_encoding is {other_encoding!r}; use a name that Python knows, cp1252 say") from None


def _find(
    store: ImageStore,
    text_column: str | None,
    text_folder: str | Path | None,
    dicom_sr: str | Path | None,
    study_column: str | None,
    headings: dict[str, str],
    salt: str | bytes | None,
    other_encoding: str | None,
) -> FoundReports:
    """Read the one source."""
    table, what = store.table, f"the table of {store.folder}"
    if study_column is not None:
        require_columns(table, [study_column], what)
    if sum(source is not None for source in (text_column, text_folder, dicom_sr)) > 1:
        raise ValueError("reports come from one source: give text_column, text_folder or dicom_sr")
    if text_folder is not None:
        secret = _salt(store, salt)
        return reports_in_folder(table, text_folder, headings, study_column, secret, other_encoding)
    if dicom_sr is not None:
        require_columns(table, ["study"], what)
        secret = _salt(store, salt)
        if secret is None:
            raise ValueError(
                f"{store.folder}: there is no index.salt beside it, so no StudyInstanceUID can be compared; give the "
                "salt that the index was made with"
            )
        return reports_in_sr(table, dicom_sr, headings, secret)
    if text_column is None:
        text_column = next((name for name in ("report", "text") if name in table.column_names), None)
        if text_column is None:
            raise ValueError(
                f"{what} has no column 'report' or 'text'; name a column (text_column), a folder of text files "
                "(text_folder) or one of structured reports (dicom_sr)"
            )
    return reports_in_column(table, text_column, headings, what)


def _salt(store: ImageStore, salt: str | bytes | None) -> bytes | None:
    if salt is not None:
        return salt.encode() if isinstance(salt, str) else salt
    beside = store.folder.parent / "index.salt"
    return load_salt(beside) if beside.is_file() else None


def _sentences(
    report: FoundReport,
    sections: tuple[str, ...] | None,
    min_words: int,
    max_chars: int,
    counts: collections.Counter,
) -> tuple[list[str], str | None]:
    """Sentences of a report, or why there are none."""
    counts["other encoding"] += report.other_encoding
    if report.fault is not None:
        return [], report.fault
    if not any(section.text for section in report.sections):
        return [], EMPTY
    texts = choose_sections(report.sections, sections)
    if not texts:
        return [], f"the report has headings, but nothing under {' or '.join(sections or ())}"
    if sum(map(len, texts)) > max_chars:
        return [], f"the report is longer than {max_chars} characters"
    every = [sentence for text in texts for sentence in split_sentences(text)]
    long_enough = [sentence for sentence in every if count_words(sentence) >= min_words]
    whole = [sentence for sentence in long_enough if "\N{REPLACEMENT CHARACTER}" not in sentence]
    counts["short"] += len(every) - len(long_enough)
    counts["lost"] += len(long_enough) - len(whole)
    if whole:
        return whole, None
    return [], _LOST if long_enough else f"the report has no sentence of {min_words} words or more"


def _check(reports: Reports, store: ImageStore, limit: float) -> None:
    """Raise if too few reports are left."""
    reasons = collections.Counter(reports.refused["reason"].to_pylist())
    without = reasons.pop(NO_REPORT, 0)
    having = len(store) - without
    told = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(4))
    if not having:
        raise RuntimeError(
            f"{store.folder}: none of {len(store)} images has a report, and {reports.counts[_UNMATCHED]} reports "
            "belong to no image. Look how reports are matched to images (open_reports), and whether the salt is that "
            "of the index"
        )
    refused = reasons.total()
    if refused == having or refused > limit * having:
        paths = [row["path"] for row in reports.refused.to_pylist() if row["reason"] != NO_REPORT]
        raise RuntimeError(
            f"{store.folder}: the reports of {refused} of {having} images cannot be used (allowed: {limit:.0%}): "
            f"{told}. For instance {', '.join(paths[:3])}. Look at these reports, choose other sections (None takes "
            "the whole text) or headings, or raise max_refused_fraction"
        )
