# SPDX-License-Identifier: Apache-2.0
"""From the label maps of a store to a segmentation question: classes, splits and the labelled subset."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from monai_ssl.data.store import ImageStore
from monai_ssl.evaluation.labelled_rows import (
    filtered_rows,
    labelled_subset,
    patients_of,
    rows_by_split,
    save_rows,
    with_saved_split,
)

__all__ = ["SegmentationLabels", "segmentation_labels"]

logger = logging.getLogger(__name__)

Classes = Sequence[str] | Mapping[str, int | Sequence[int]]


@dataclass(frozen=True)
class SegmentationLabels:
    """A segmentation question on the volumes of a store. Classes exclude each other; what is in none is background.

    Attributes:
        class_names: K names; class k of the network's output is ``class_names[k - 1]``, 0 is the background.
        label_values: for each class the values of the label maps that mean it.
        present: ``(M, K)`` booleans, whether a volume's label map has voxels of a class.
        groups: ``(M,)`` patients, as text.
        rows: the rows of the store in each split: ``"train"`` (the labelled subset), ``"val"``, ``"test"``, and
            ``"pool"``: all volumes that meet the filter and are in neither val nor test, labelled or not.
        label_fraction: as asked for.
        split_hash: of the volumes in train, val and test.
        subset_hash: of the volumes in the labelled subset.
    """

    class_names: list[str]
    label_values: list[list[int]]
    present: np.ndarray
    groups: np.ndarray
    rows: dict[str, np.ndarray]
    label_fraction: float = 1.0
    split_hash: str = ""
    subset_hash: str = ""

    @property
    def classes(self) -> dict[str, list[int]]:
        """The names with their values."""
        return dict(zip(self.class_names, self.label_values, strict=True))

    def lookup(self) -> np.ndarray:
        """Return (256,) uint8: the class of each value that a label map may have."""
        return class_of_value(self.label_values)

    def describe(self) -> str:
        """Say in a few lines what is asked and how many volumes answer it."""
        values = (", ".join(map(str, group)) for group in self.label_values)
        shown = [f"{name} (value {value})" for name, value in zip(self.class_names, values, strict=True)]
        lines = [f"segmentation: {', '.join(shown)}"]
        for split, rows in self.rows.items():
            counts = self.present[rows].sum(axis=0)
            told = ", ".join(f"{count} with {name}" for name, count in zip(self.class_names, counts, strict=True))
            lines.append(f"  {split}: {len(rows)} volumes of {len(np.unique(self.groups[rows]))} patients ({told})")
        return "\n".join(lines)


def class_of_value(label_values: Iterable[Sequence[int]]) -> np.ndarray:
    """Return (256,) uint8: 1 + the position of the group that holds a value, 0 for a value in none."""
    lookup = np.zeros(256, dtype=np.uint8)
    for number, values in enumerate(label_values, 1):
        lookup[list(values)] = number
    return lookup


def segmentation_labels(
    store: ImageStore,
    classes: Classes | None = None,
    *,
    where: str | None = None,
    label_fraction: float = 1.0,
    seed: int = 0,
    splits: Sequence[str] = ("train", "val", "test"),
    split_file: str | Path | None = None,
    output_dir: str | Path | None = None,
) -> SegmentationLabels:
    """Take the volumes of a store that have a label map, by split, and settle which values mean which class.

    Args:
        store: of volumes.
        classes: names, of which the first is value 1 of the label maps, the second value 2, ...; or names with their
            values, ``{"kidney": [1, 2], "tumour": 3}``. A value in none of them is background. None: every value that
            occurs is a class.
        where: row filter, see :func:`monai_ssl.data.select_rows`.
        label_fraction: share of the labelled training volumes, 0 to 1, or their number (a whole number above 1). The
            subsets of one seed are nested and hold whole patients; they are stratified by the classes if some training
            volumes have a class and others do not.
        seed: of the subset.
        splits: the splits that are needed. ``("all",)`` takes every labelled volume as one split.
        split_file: ``split.json`` of an earlier run, to be followed instead of the table's column ``split``.
        output_dir: folder for ``split.json`` and ``labelled_subset.json``; None writes nothing.

    Returns:
        The question.

    Raises:
        ValueError: no volume has a label map, a split has none, a class to be trained occurs nowhere or not in the
            labelled subset, or splits share patients.
    """
    table = store.table
    kept = filtered_rows(table, where)
    known = kept & np.array([store.has_label_map(row) for row in range(len(table))], dtype=bool)
    if not known.any():
        raise ValueError(
            f"no volume of {store.folder} has a label map: name it in the column 'label_map' of the labels' table "
            "(beside 'file')"
        )
    logger.info("%d of %d volumes are left out: filtered, or without label map", (~known).sum(), len(known))
    found = [set(store.label_values(row)) - {0} if known[row] else set() for row in range(len(table))]
    names, values = _settled_classes(classes, found, all_needed="train" in splits)
    present = np.array([[not marks.isdisjoint(group) for group in values] for marks in found], dtype=bool)

    if split_file is not None:
        table = with_saved_split(table, split_file)
    rows, split_column = rows_by_split(table, known, splits)
    _look_for_classes(present, rows, names)
    if "train" in rows:
        strata = _strata(present[rows["train"]])
        for k in strata:
            flags = [bool(flag) if labelled else None for flag, labelled in zip(present[:, k], known, strict=True)]
            table = table.append_column(f"_class_{k}", pa.array(flags, pa.bool_()))
        columns = [f"_class_{k}" for k in strata] or None
        rows["train"] = labelled_subset(table, columns, rows["train"], label_fraction, seed)
        rows["pool"] = np.flatnonzero(kept & ~np.isin(split_column, ["val", "test"]))
        _refuse_missing(present[rows["train"]], names)
    whole = {split: np.flatnonzero(known & (split_column == split)) for split in splits if split != "all"}
    hashes = save_rows(
        output_dir, table, whole, rows, label_fraction, seed, classes=dict(zip(names, values, strict=True))
    )
    labels = SegmentationLabels(names, values, present, patients_of(table), rows, label_fraction, *hashes)
    logger.info("%s", labels.describe())
    return labels


def _settled_classes(
    classes: Classes | None, found: list[set[int]], all_needed: bool
) -> tuple[list[str], list[list[int]]]:
    occurring = sorted(set().union(*found))
    if not occurring:
        raise ValueError("every label map is empty: all of its voxels are 0")
    if classes is None:
        return [f"label_{value}" for value in occurring], [[value] for value in occurring]
    if isinstance(classes, str) or not classes:
        raise ValueError(f"classes must be a list of names, or names with their values, got {classes!r}")
    given: dict[Any, Any] = (
        dict(classes) if isinstance(classes, Mapping) else {name: value for value, name in enumerate(classes, 1)}
    )
    if len(given) < len(classes):
        raise ValueError(f"a class is named twice: {', '.join(map(str, classes))}")
    names = [str(name) for name in given]
    values = [[int(v) for v in ([value] if isinstance(value, (int, float)) else value)] for value in given.values()]
    every = [value for group in values for value in group]
    if len(set(every)) < len(every) or not every or min(every) < 1 or max(every) > 255:
        raise ValueError(f"the values of classes must be from 1 to 255, each in one class, got {dict(given)}")
    absent = [name for name, group in zip(names, values, strict=True) if not set(group) & set(occurring)]
    if absent and (all_needed or len(absent) == len(names)):
        raise ValueError(
            f"no label map has a voxel of {', '.join(absent)}; the values that occur are "
            f"{', '.join(map(str, occurring))}: give classes with their values, for example "
            f"{{'{names[0]}': {occurring[0]}}}"
        )
    others = sorted(set(occurring) - set(every))
    if others:
        logger.info("the values %s of the label maps are in no class and count as background", others)
    return names, values


def _strata(present: np.ndarray) -> list[int]:
    """Classes that some of the volumes have and others lack: only those can be stratified by."""
    share = present.mean(axis=0)
    return np.flatnonzero((share > 0) & (share < 1)).tolist()


def _look_for_classes(present: np.ndarray, rows: dict[str, np.ndarray], names: list[str]) -> None:
    for split, chosen in rows.items():
        lacking = [name for name, any_ in zip(names, present[chosen].any(axis=0), strict=True) if not any_]
        if lacking:
            logger.warning("no volume of the split %r has %s: no Dice can be given for it there", split, lacking)


def _refuse_missing(present: np.ndarray, names: list[str]) -> None:
    lacking = [name for name, any_ in zip(names, present.any(axis=0), strict=True) if not any_]
    if lacking:
        raise ValueError(
            f"none of the {len(present)} labelled training volumes has {', '.join(lacking)}; leave the class out by "
            "'classes', ask for more labels, or move patients between the splits"
        )
