# SPDX-License-Identifier: Apache-2.0
"""The CheXpert 8x200 retrieval sets that came with ConVIRT (github.com/yuhaozhang/convirt), read and checked."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa

from monai_ssl.data.labels import read_csv
from monai_ssl.data.tables import require_columns

__all__ = ["ChexpertRetrieval", "read_chexpert_retrieval"]

_SETS = ("image-retrieval", "text-retrieval")
_PATIENT = re.compile(r"(patient\d+)/")


@dataclass(frozen=True)
class ChexpertRetrieval:
    """Queries and candidates of the two tasks.

    Attributes:
        class_names: K names, in the order of the candidates' columns.
        candidates: files of the candidates.
        candidate_classes: ``(N,)`` class of each.
        image_queries: files of the image queries; empty without them.
        image_query_classes: ``(Q,)``.
        text_queries: sentences; empty without them.
        text_query_classes: ``(T,)``.
    """

    class_names: list[str]
    candidates: list[Path]
    candidate_classes: np.ndarray
    image_queries: list[Path]
    image_query_classes: np.ndarray
    text_queries: list[str]
    text_query_classes: np.ndarray

    @staticmethod
    def patients(files: Sequence[Path]) -> np.ndarray:
        """Return the patient of each file, which CheXpert's folders name (``patient01653/study2/...``)."""
        found = [_PATIENT.search(path.as_posix() + "/") for path in files]
        return np.array(
            [match.group(1) if match else path.as_posix() for match, path in zip(found, files, strict=True)]
        )


def read_chexpert_retrieval(folder: str | Path, images: str | Path) -> ChexpertRetrieval:
    """Read the released files as they are.

    The folder holds ``image-retrieval/candidate.csv`` (``Path``, then CheXpert's columns, of which the one finding that
    is 1.0 is the class), ``image-retrieval/query.csv`` (``Variable``, the class, and ``Path``) and
    ``text-retrieval/query.csv`` (``Variable`` and ``Text``). One of the two queries may be missing. Its README promises
    10 sentences a class; the released file has 5, so any number is taken.

    Args:
        folder: of the two sets.
        images: CheXpert's folder, or the one above it. Paths that begin with ``CheXpert-v1.0-small/`` are found in
            ``CheXpert-v1.0/`` too.

    Raises:
        FileNotFoundError: there are no candidates or no queries, or images are missing (with their number and the
            first).
        ValueError: a column is missing, a row has no or several positive findings, a path is there twice, a query is
            among the candidates or of an unknown class, or the two sets have different candidates.
    """
    folder, root = Path(folder), Path(images)
    tables = {name: folder / name / "candidate.csv" for name in _SETS}
    present = [path for path in tables.values() if path.is_file()]
    if not present:
        raise FileNotFoundError(f"{folder} has neither {' nor '.join(f'{name}/candidate.csv' for name in _SETS)}")
    names, paths, classes = _candidates(present[0])
    if len(present) > 1 and sorted(_candidates(present[1])[1]) != sorted(paths):
        raise ValueError(f"{present[0]} and {present[1]} have different candidates; they are the same in the release")
    queries = {name: folder / name / "query.csv" for name in _SETS}
    if not any(path.is_file() for path in queries.values()):
        raise FileNotFoundError(
            f"{folder} has no queries: neither {' nor '.join(f'{name}/query.csv' for name in _SETS)}"
        )
    image_paths, image_classes = _queries(queries[_SETS[0]], "Path", names)
    texts, text_classes = _queries(queries[_SETS[1]], "Text", names)
    if twice := sorted(set(image_paths) & set(paths)):
        raise ValueError(f"{queries[_SETS[0]]}: {len(twice)} queries are candidates too, for instance {twice[0]}")
    files = _found([*paths, *image_paths], root, folder)
    return ChexpertRetrieval(
        names, files[: len(paths)], classes, files[len(paths) :], image_classes, texts, text_classes
    )


def _candidates(path: Path) -> tuple[list[str], list[str], np.ndarray]:
    table = read_csv(path)
    require_columns(table, ["Path"], str(path))
    findings = [name for name in table.column_names if _is_finding(table, name)]
    if not findings:
        raise ValueError(f"{path} has no columns of findings, which hold 0.0 and 1.0")
    marks = np.array([_numbers(table[name]) for name in findings]).T == 1  # (N, findings)
    paths = [str(value) for value in table["Path"].to_pylist()]
    _refuse_repeats(path, paths)
    for row, count in enumerate(marks.sum(axis=1)):
        if count != 1:
            raise ValueError(f"{path}, row {row + 2}: {count} positive findings, one is needed ({paths[row]})")
    used = marks.any(axis=0)
    names = [name for name, use in zip(findings, used, strict=True) if use]
    return names, paths, marks[:, used].argmax(axis=1)


def _is_finding(table: pa.Table, name: str) -> bool:
    """CheXpert's other columns are Path, Sex, Age, Frontal/Lateral and AP/PA."""
    values = set(_numbers(table[name])) if name not in ("Path", "Age") else {None}
    return values <= {0.0, 1.0, -1.0}


def _numbers(column: pa.ChunkedArray) -> list[float | None]:
    """Numbers of a column, an empty cell as 0 (CheXpert's "not mentioned"); None where it holds something else."""
    values = column.to_pylist()
    return [0.0 if v is None else float(v) if isinstance(v, (int, float)) else None for v in values]


def _queries(path: Path, column: str, names: list[str]) -> tuple[list[str], np.ndarray]:
    if not path.is_file():
        return [], np.zeros(0, dtype=np.int64)
    table = read_csv(path)
    require_columns(table, ["Variable", column], str(path))
    values = [str(value or "").strip() for value in table[column].to_pylist()]
    if "" in values:
        raise ValueError(f"{path}, row {values.index('') + 2}: the column {column!r} is empty")
    _refuse_repeats(path, values, show=column == "Path")
    for row, name in enumerate(table["Variable"].to_pylist()):
        if name not in names:
            raise ValueError(
                f"{path}, row {row + 2}: no candidate has the class {name!r}; there are {', '.join(names)}"
            )
    return values, np.array([names.index(name) for name in table["Variable"].to_pylist()], dtype=np.int64)


def _refuse_repeats(path: Path, values: list[str], show: bool = True) -> None:
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        example = f", for instance {twice[0]}" if show else f" (row {values.index(twice[0]) + 2} comes again)"
        raise ValueError(f"{path}: {len(twice)} entries are there more than once{example}")


def _found(paths: list[str], root: Path, folder: Path) -> list[Path]:
    """Where the images are: below the root, or below it without the first folder, by either of CheXpert's names."""
    files, missing = [], []
    for path in paths:
        first, *rest = PurePosixPath(path).parts
        places = [root / path, root / first.removesuffix("-small") / Path(*rest), root / Path(*rest)]
        file = next((place for place in places if place.is_file()), None)
        files.append(file)
        if file is None:
            missing.append(path)
    if missing:
        raise FileNotFoundError(
            f"{root}: {len(missing)} of the {len(paths)} images that {folder} names are not there, for instance "
            f"{', '.join(missing[:3])}; give CheXpert's folder or the one above it"
        )
    return files
