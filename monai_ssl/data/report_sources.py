# SPDX-License-Identifier: Apache-2.0
"""Where reports come from and which image each belongs to: a column of the table, or a folder of text files.

Text lives here and in ``Reports`` only. No message quotes it.
"""

from __future__ import annotations

import codecs
import collections
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import pyarrow as pa

from monai_ssl.data.hashing import hash_identifier
from monai_ssl.data.report_sections import Section, find_sections
from monai_ssl.data.tables import require_columns

MAX_TEXT_BYTES = 1 << 20  # more is no report of a study

NO_REPORT = "no report"
EMPTY = "the report is empty"
_SEVERAL = "several text files have the name of its report"

# A mark says what a file is; without one UTF-16 cannot be told from other bytes. UTF-32's begins like UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class FoundReport:
    """One report, or why there is none. Its text stays out of ``repr``.

    Args:
        sections: its parts.
        fault: why it cannot be used.
        other_encoding: whether it was read as ``other_encoding``.
    """

    sections: list[Section] = field(default_factory=list, repr=False)
    fault: str | None = None
    other_encoding: bool = False


@dataclass(frozen=True)
class FoundReports:
    """The reports of a source.

    Args:
        reports: each one once.
        of_row: for each row of the table the number of its report, -1 without one.
        faults: why a row has none, if it is not just that there is none; by row.
        unmatched: reports that belong to no row.
    """

    reports: list[FoundReport]
    of_row: list[int]
    faults: dict[int, str]
    unmatched: int = 0


def reports_in_column(table: pa.Table, column: str, headings: dict[str, str], what: str) -> FoundReports:
    """Reports in a column of text. Equal text of one patient is one report.

    Raises:
        ValueError: if there is no such column, or it holds no text.
    """
    require_columns(table, [column], what)
    values = table[column]
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise ValueError(f"{what}: the column {column!r} holds {values.type}, not text; reports are text")
    patients = table["group_id"].to_pylist() if "group_id" in table.column_names else [None] * len(table)
    numbers: dict[tuple, int] = {}
    of_row = []
    for row, (text, patient) in enumerate(zip(values.to_pylist(), patients, strict=True)):
        key = (text, row if patient is None else patient)
        of_row.append(-1 if not (text or "").strip() else numbers.setdefault(key, len(numbers)))
    return FoundReports([FoundReport(find_sections(text, headings)) for text, _ in numbers], of_row, {})


def reports_in_folder(
    table: pa.Table,
    folder: str | Path,
    headings: dict[str, str],
    study_column: str | None,
    salt: bytes | None,
    other_encoding: str | None,
) -> FoundReports:
    """Reports in text files (``*.txt``) named after images or studies; see ``open_reports``.

    Raises:
        FileNotFoundError: if there is no such folder, or no text file in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of reports")
    files = _text_files(folder)
    if not files:
        raise FileNotFoundError(f"{folder}: no text files (*.txt) in it")
    require_columns(table, ["path"] if study_column is None else ["path", study_column], "the table of the images")
    numbers = {name: number for number, name in enumerate(files)}
    stems = collections.Counter(PurePosixPath(name).name for name in files)
    number_of_stem = {PurePosixPath(name).name: number for name, number in numbers.items()}
    by_hash = {} if salt is None else {hash_identifier(stem, salt, "study"): stem for stem in stems}
    paths = table["path"].to_pylist()
    named = [None] * len(table) if study_column is None else table[study_column].to_pylist()
    studies = table["study"].to_pylist() if "study" in table.column_names else [None] * len(table)
    of_row, faults = [], {}
    for row, (path, name, study) in enumerate(zip(paths, named, studies, strict=True)):
        candidates = [*_possible_names(path, name), by_hash.get(study, "")]
        chosen = next((name for name in candidates if name in numbers or name in stems), None)
        if chosen not in numbers and stems[chosen] > 1:
            faults[row] = _SEVERAL
            chosen = None
        of_row.append(-1 if chosen is None else numbers.get(chosen, number_of_stem.get(chosen)))
    used = sorted(set(of_row) - {-1})
    renumbered = {old: new for new, old in enumerate(used)} | {-1: -1}
    texts = list(files.values())
    reports = [_read_report(texts[number], headings, other_encoding) for number in used]
    return FoundReports(reports, [renumbered[number] for number in of_row], faults, len(files) - len(used))


def _text_files(folder: Path) -> dict[str, Path]:
    """Text files below a folder by their names without ``.txt``, relative to it and with /."""
    found, seen = {}, set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real in seen:
            continue  # a link to a folder above would never end
        seen.add(real)
        for name in sorted(files):
            if name.lower().endswith(".txt") and not name.startswith("."):
                path = Path(place, name)
                found[path.relative_to(folder).as_posix()[: -len(".txt")]] = path
    return found


def _possible_names(path: str, named: object) -> Iterable[str]:
    """What the report of a file may be called, the best name first."""
    if named is not None and str(named).strip():
        given = PurePosixPath(str(named).strip().replace("\\", "/")).as_posix()
        given = given[: -len(".txt")] if given.lower().endswith(".txt") else given
        yield given
        yield PurePosixPath(given).name
    path = path.partition("#")[0] if "#" in PurePosixPath(path).name else path
    pure = PurePosixPath(path)
    bare = pure.name.removesuffix(".gz")
    for own in dict.fromkeys([pure.name, bare.rpartition(".")[0] or bare]):
        yield from _ends_of((*pure.parts[:-1], own))
    if len(pure.parts) > 1:  # of its study: the folder it lies in
        yield from _ends_of(pure.parts[:-1])


def _ends_of(parts: Sequence[str]) -> Iterable[str]:
    return ("/".join(parts[start:]) for start in range(len(parts)))


def _read_report(path: Path, headings: dict[str, str], other_encoding: str | None) -> FoundReport:
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            return FoundReport(fault=f"the text file is larger than {MAX_TEXT_BYTES >> 20} MiB")
        data = path.read_bytes()
    except OSError as error:
        return FoundReport(fault=f"the text file could not be read ({error.strerror or type(error).__name__})")
    marked = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    other = False
    try:
        text = data.decode(marked or "utf-8")
    except UnicodeDecodeError:
        if marked is not None:
            return FoundReport(fault="the text file is not in the encoding that its byte-order mark says")
        if other_encoding is None:
            return FoundReport(fault="the text file is not UTF-8")
        try:
            text, other = data.decode(other_encoding), True
        except UnicodeDecodeError:
            return FoundReport(fault=f"the text file is neither UTF-8 nor {other_encoding}")
    if "\0" in text:
        return FoundReport(fault="the text file holds NUL characters: UTF-16 without a mark, or no text")
    return FoundReport(find_sections(text, headings), None, other)
