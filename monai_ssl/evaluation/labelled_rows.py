# SPDX-License-Identifier: Apache-2.0
"""Which rows of a store a downstream training learns from: splits by patient, the labelled subset, and their files."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from monai_ssl.data.labels import select_rows
from monai_ssl.data.splits import assert_disjoint, assign_splits, load_split, save_split
from monai_ssl.data.subsets import label_subsets

logger = logging.getLogger(__name__)


def filtered_rows(table: pa.Table, where: str | None) -> np.ndarray:
    """Return ``(M,)`` booleans: the rows that meet a filter of :func:`monai_ssl.data.select_rows`."""
    kept = np.zeros(len(table), dtype=bool)
    numbered = table.append_column("row_number", pa.array(np.arange(len(table))))
    kept[select_rows(numbered, where)["row_number"].to_numpy()] = True
    return kept


def patients_of(table: pa.Table) -> np.ndarray:
    """Return ``(M,)`` patients, as text."""
    return np.array([str(value) for value in table["group_id"].to_pylist()])


def with_saved_split(table: pa.Table, split_file: str | Path) -> pa.Table:
    """Return the table with the splits of an earlier run in its column ``split``.

    Raises:
        ValueError: the images are not those of that run.
    """
    try:
        saved = load_split(split_file, table)
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(
            f"the images are not those that the network was trained, validated and tested with ({error}); for other "
            "data use split=all"
        ) from error
    names = np.full(len(table), None, dtype=object)
    for split, rows in saved.items():
        names[rows] = split
    column = pa.array(names.tolist(), pa.string())
    if "split" in table.column_names:
        return table.set_column(table.schema.get_field_index("split"), "split", column)
    return table.append_column("split", column)


def rows_by_split(
    table: pa.Table, known: np.ndarray, splits: Sequence[str]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the labelled rows of each split, and the split of every row.

    Args:
        table: of a store; without a column ``split`` patients are dealt.
        known: ``(M,)`` booleans, the rows with a label.
        splits: the splits that are needed; ``("all",)`` takes every labelled row as one.

    Raises:
        ValueError: a split has no labelled row, or two share patients or images.
    """
    if tuple(splits) == ("all",):
        return {"all": np.flatnonzero(known)}, np.full(len(table), "all", dtype=object)
    if "split" not in table.column_names:
        logger.warning("the table has no column 'split': patients are dealt to train, val and test by their hash")
        table = assign_splits(table)
    column = np.array(table["split"].to_pylist(), dtype=object)
    rows = {split: np.flatnonzero(known & (column == split)) for split in splits}
    for split, found in rows.items():
        if not len(found):
            counts = Counter(str(value) for value in column[known])
            told = ", ".join(f"{value} ({count})" for value, count in counts.most_common(8))
            raise ValueError(f"no labelled image is in the split {split!r}; the column 'split' has {told}")
    _refuse_shared_patients(table, rows)
    return rows, column


def _refuse_shared_patients(table: pa.Table, rows: dict[str, np.ndarray]) -> None:
    for first, second in itertools.combinations(rows, 2):
        try:
            assert_disjoint(table.take(pa.array(rows[first])), table.take(pa.array(rows[second])))
        except ValueError as error:
            raise ValueError(f"the splits {first!r} and {second!r} share patients or images: {error}") from error


def labelled_subset(
    table: pa.Table, strata: str | Sequence[str] | None, rows: np.ndarray, fraction: float, seed: int
) -> np.ndarray:
    """Return the part of the labelled training rows that a run learns from; see :func:`monai_ssl.data.label_subsets`.

    Args:
        table: has the columns of ``strata``.
        strata: what the subset is stratified by, or None.
        rows: the labelled training rows.
        fraction: share, above 0 to 1, or a whole number above 1.
        seed: the subsets of one seed are nested.

    Raises:
        ValueError: the fraction is neither.
    """
    if fraction == 1:
        return rows
    by_count = fraction > 1
    if not fraction > 0 or (by_count and fraction != int(fraction)):
        raise ValueError(f"label_fraction is {fraction}: give a share above 0 to 1, or a whole number of images")
    sizes = {"fractions": (), "counts": (int(fraction),)} if by_count else {"fractions": (float(fraction),)}
    return next(iter(label_subsets(table, strata, **sizes, seed=seed, rows=rows).values()))


def save_rows(
    output_dir: str | Path | None,
    table: pa.Table,
    whole: dict[str, np.ndarray],
    rows: dict[str, np.ndarray],
    fraction: float,
    seed: int,
    **facts: object,
) -> tuple[str, str]:
    """Write ``split.json`` and, where there is a split "train", ``labelled_subset.json``.

    Args:
        output_dir: the folder; None writes nothing.
        table: of the store.
        whole: all labelled rows of each split.
        rows: the rows that are used.
        fraction: see :func:`labelled_subset`.
        seed: likewise.
        facts: what ``split.json`` shall say besides.

    Returns:
        The first 16 digits of both hashes; empty where nothing was written.
    """
    if output_dir is None:
        return "", ""
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    split_hash, subset_hash = save_split(folder / "split.json", table, whole or rows, **facts), ""
    if "train" in rows:
        subset_hash = save_split(folder / "labelled_subset.json", table, {fraction: rows["train"]}, seed=seed)
    return split_hash[:16], subset_hash[:16]
