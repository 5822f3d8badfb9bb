# SPDX-License-Identifier: Apache-2.0
"""Which images share a study or a report, and which reports are shared by those who should not."""

from __future__ import annotations

import collections
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components


def of_several_patients(table: pa.Table, of_row: Iterable[int]) -> set[int]:
    """Reports that images of different patients are matched to."""
    if "group_id" not in table.column_names:
        return set()
    patients: dict[int, set] = collections.defaultdict(set)
    for number, patient in zip(of_row, table["group_id"].to_pylist(), strict=True):
        patients[number].add(patient)
    return {number for number, own in patients.items() if len(own - {None}) > 1 and number >= 0}


def number_studies(table: pa.Table, study_column: str | None, of_row: list[int]) -> np.ndarray:
    """Number the studies: images that name one study of one patient, or share a report, belong together."""
    column = study_column or ("study" if "study" in table.column_names else None)
    names = [None] * len(table) if column is None else table[column].to_pylist()
    patients = table["group_id"].to_pylist() if "group_id" in table.column_names else [None] * len(table)
    keys = [*(("study", *key) for key in zip(patients, names, strict=True)), *(("report", number) for number in of_row)]
    rows = np.tile(np.arange(len(table)), 2)
    known = np.array([key[-1] is not None and key[-1] != -1 for key in keys], dtype=bool)
    nodes: dict[tuple, int] = {}
    ends = np.array([nodes.setdefault(key, len(nodes)) for key in keys]) + len(table)
    size = len(table) + len(nodes)
    graph = coo_matrix((np.ones(known.sum()), (rows[known], ends[known])), shape=(size, size))
    _, labels = connected_components(graph, directed=False)
    _, first, number = np.unique(labels[: len(table)], return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[number].astype(np.int64)  # as they first appear, whatever they are called
