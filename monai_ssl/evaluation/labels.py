# SPDX-License-Identifier: Apache-2.0
"""From a user's label column(s) to a classification question: classes, targets, splits and the labelled subset."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from monai_ssl.data.datasets import PaddedItems, StoreDataset
from monai_ssl.data.store import ImageStore
from monai_ssl.data.tables import require_columns
from monai_ssl.evaluation.fine_tuning import class_weights
from monai_ssl.evaluation.label_columns import read_targets, settle_task
from monai_ssl.evaluation.labelled_rows import (
    filtered_rows,
    labelled_subset,
    patients_of,
    rows_by_split,
    save_rows,
    with_saved_split,
)

__all__ = ["ClassificationLabels", "LabelledStoreDataset", "classification_labels"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClassificationLabels:
    """A classification question on the images of a store.

    Attributes:
        task: ``"binary"``, ``"multiclass"`` or ``"multilabel"``.
        class_names: K names; for a binary question two, of which the second is the positive one.
        targets: one row for each row of the store: ``(M,)`` classes, or ``(M, K)`` findings of 0 and 1; -1 is unknown.
        groups: ``(M,)`` patients, as text.
        rows: the rows of the store in each split: ``"train"`` (the labelled subset), ``"val"``, ``"test"``, and
            ``"pool"``: all images that meet the filter and are in neither val nor test, labelled or not.
        label_fraction: as asked for.
        split_hash: of the images in train, val and test.
        subset_hash: of the images in the labelled subset.
        label_column: column or columns that the labels were read from.
    """

    task: str
    class_names: list[str]
    targets: np.ndarray
    groups: np.ndarray
    rows: dict[str, np.ndarray]
    label_fraction: float
    split_hash: str
    subset_hash: str
    label_column: str | list[str]

    @property
    def multilabel(self) -> bool:
        """Whether the classes do not exclude each other."""
        return self.task == "multilabel"

    def class_weights(self, power: float) -> torch.Tensor | None:
        """Return weights for the loss from the labelled subset, or None for power 0."""
        return class_weights(self.targets[self.rows["train"]], len(self.class_names), power) if power else None

    def pool_targets(self) -> np.ndarray:
        """Return the targets as hybrid pretraining sees them: those of the labelled subset, -1 for all other images.

        So pretraining with 10 % of the labels sees the labels that fine-tuning with 10 % sees.
        """
        shown = np.full_like(self.targets, -1)
        shown[self.rows["train"]] = self.targets[self.rows["train"]]
        return shown

    def strata(self, split: str) -> np.ndarray:
        """Return the classes of a split's images, for balanced sampling.

        Raises:
            ValueError: findings do not part the images into classes.
        """
        if self.multilabel:
            raise ValueError("balanced_sampling is for competing classes; weigh findings by class_weight_power")
        return self.targets[self.rows[split]]

    def describe(self) -> str:
        """Say in a few lines what is asked and how many images answer it."""
        lines = [f"{self.task}: {', '.join(self.class_names)}"]
        for split, rows in self.rows.items():
            known = self.targets[rows]
            if self.multilabel:
                counts = ", ".join(f"{n} {name}" for name, n in zip(self.class_names, (known == 1).sum(0), strict=True))
            else:
                counts = ", ".join(f"{(known == k).sum()} {name}" for k, name in enumerate(self.class_names))
            patients = len(np.unique(self.groups[rows]))
            lines.append(f"  {split}: {len(rows)} images of {patients} patients ({counts})")
        return "\n".join(lines)


class LabelledStoreDataset(StoreDataset):
    """Images of a store with their target under ``"label"``: an integer, or (K,) integers for findings.

    Args:
        store: the store.
        labels: the question.
        split: ``"train"``, ``"val"``, ``"test"``, or ``"pool"``: all images to pretrain on, of which only those of the
            labelled subset show their label (-1 elsewhere), so that hybrid pretraining with 10 % of the labels sees the
            labels that fine-tuning with 10 % sees.
        cache: see :class:`monai_ssl.data.StoreDataset`.
        label_columns: further columns to give with each item, for every image; see there. ``["group_id"]`` names the
            patient.

    Raises:
        ValueError: there is no such split.
    """

    def __init__(
        self,
        store: ImageStore,
        labels: ClassificationLabels,
        split: str,
        cache: str = "none",
        label_columns: Sequence[str] | None = None,
    ) -> None:
        if split not in labels.rows:
            raise ValueError(f"there is no split {split!r}; there are {', '.join(labels.rows)}")
        super().__init__(store, labels.rows[split], label_columns, cache=cache)
        self.targets = labels.pool_targets() if split == "pool" else labels.targets

    def __getitems__(self, indices: Sequence[int]) -> PaddedItems:
        items = super().__getitems__(indices)
        for item in items:
            target = self.targets[item["index"]]
            item["label"] = int(target) if target.ndim == 0 else torch.from_numpy(target.copy())
        return items


def classification_labels(
    store: ImageStore,
    label_column: str | Sequence[str],
    *,
    task: str = "auto",
    classes: Sequence[str] | None = None,
    where: str | None = None,
    label_fraction: float = 1.0,
    seed: int = 0,
    splits: Sequence[str] = ("train", "val", "test"),
    split_file: str | Path | None = None,
    output_dir: str | Path | None = None,
) -> ClassificationLabels:
    """Read the labels of a store's table and check that every split can answer the question.

    Args:
        store: its table has the user's columns.
        label_column: one column of classes (text or numbers; findings separated by ``|`` for ``task="multilabel"``), or
            several columns of 0 and 1, one for each finding.
        task: ``"binary"``, ``"multiclass"``, ``"multilabel"``, or ``"auto"``: by the columns and the number of classes.
        classes: names in the order of the outputs; images of other classes are left out (of several columns: which of
            them). None: all that occur, sorted. A binary question asks for the second one.
        where: row filter, see :func:`monai_ssl.data.select_rows`.
        label_fraction: share of the labelled training images, 0 to 1, or their number (a whole number above 1). The
            subsets of one seed are nested, stratified and hold whole patients.
        seed: of the subset.
        splits: the splits that are needed; each must hold every class. ``("all",)`` takes every image as one split.
        split_file: ``split.json`` of an earlier run, to be followed instead of the table's column ``split``.
        output_dir: folder for ``split.json`` and ``labelled_subset.json``; None writes nothing.

    Returns:
        The question.

    Raises:
        ValueError: a column or class is missing (the nearest name is given), a value is no label, or a split lacks a
            class.
    """
    columns = [label_column] if isinstance(label_column, str) else list(label_column)
    table = store.table
    require_columns(table, columns, f"the table of {store.folder}")
    kept = filtered_rows(table, where)
    names, targets = read_targets(table, label_column, task, classes, kept)
    task = settle_task(task, targets.ndim == 2, names)
    known = kept & ((targets >= 0).any(axis=1) if targets.ndim == 2 else targets >= 0)
    if not known.any():
        raise ValueError(f"no image has a label in {', '.join(columns)}")
    logger.info("%d of %d images are left out: filtered, or without label", (~known).sum(), len(known))

    targets = np.where(known[:, None] if targets.ndim == 2 else known, targets, -1)
    table = _with_canonical_labels(table, names, targets)
    if split_file is not None:
        table = with_saved_split(table, split_file)
    rows, split_column = rows_by_split(table, known, splits)
    for split in splits:
        _refuse_missing_classes(split, targets[rows[split]], names)
    if "train" in rows:
        held_out = np.isin(split_column, ["val", "test"])
        rows = {**rows, "pool": np.flatnonzero(kept & ~held_out)}
        strata = [f"_target_{k}" for k in range(len(names))] if targets.ndim == 2 else "_target"
        rows["train"] = labelled_subset(table, strata, rows["train"], label_fraction, seed)
        _refuse_missing_classes("train (the labelled subset)", targets[rows["train"]], names)
    whole = {split: np.flatnonzero(known & (split_column == split)) for split in splits if split != "all"}
    hashes = save_rows(output_dir, table, whole, rows, label_fraction, seed, label_column=columns)
    groups = patients_of(table)
    labels = ClassificationLabels(task, names, targets, groups, rows, label_fraction, *hashes, label_column)
    logger.info("%s", labels.describe())
    return labels


def _with_canonical_labels(table: pa.Table, names: list[str], targets: np.ndarray) -> pa.Table:
    """Add the targets as columns: what the choice of subsets works on."""
    if targets.ndim == 2:
        for k in range(len(names)):
            column = pa.array([None if value < 0 else int(value) for value in targets[:, k]], pa.int64())
            table = table.append_column(f"_target_{k}", column)
        return table
    return table.append_column("_target", pa.array([None if v < 0 else names[v] for v in targets], pa.string()))


def _refuse_missing_classes(split: str, targets: np.ndarray, names: list[str]) -> None:
    counts = (targets == 1).sum(axis=0) if targets.ndim == 2 else np.bincount(targets, minlength=len(names))
    lacking = [name for name, count in zip(names, counts, strict=True) if not count]
    if lacking:
        raise ValueError(
            f"the split {split!r} has no image of {', '.join(lacking)} ({len(targets)} images); leave the class out by "
            "'classes' (or its label column), or move patients between the splits"
        )
    if targets.ndim == 2:
        always = [name for k, name in enumerate(names) if not (targets[:, k] == 0).any()]
        if always:
            raise ValueError(f"the split {split!r} has no image without {', '.join(always)}; leave the finding out")
