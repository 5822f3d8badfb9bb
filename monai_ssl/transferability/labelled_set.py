# SPDX-License-Identifier: Apache-2.0
"""A labelled folder of images as a study sees it: its store, its classes, its folds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from monai.data import DataLoader
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from torch import Tensor

from monai_ssl.data import ImageStore, PadCollate, StoreDataset, open_radiographs, pool_fingerprint
from monai_ssl.evaluation import ClassificationLabels, Preprocessing, classification_labels

__all__ = ["LabelledSet", "open_labelled_set"]


@dataclass(frozen=True)
class LabelledSet:
    """Images with one class each.

    Attributes:
        name: in tables and file names.
        store: the prepared images.
        labels: their classes; ``labels.rows["all"]`` are the labelled rows of the store.
    """

    name: str
    store: ImageStore
    labels: ClassificationLabels

    @property
    def rows(self) -> np.ndarray:
        """The labelled rows of the store."""
        return self.labels.rows["all"]

    @property
    def fingerprint(self) -> str:
        """Hash of the labelled images' contents."""
        return pool_fingerprint(self.store, self.rows)

    def classes_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the class numbers of rows of the store."""
        return self.labels.targets[rows]

    def patients_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the patients of rows of the store, numbered as they first come in the store.

        Their names are salted hashes: folds and draws that sorted them would differ from index to index.
        """
        _, first, codes = np.unique(self.labels.groups, return_index=True, return_inverse=True)
        return np.argsort(np.argsort(first))[codes][rows]

    def question(self, train: np.ndarray, test: np.ndarray | None = None) -> ClassificationLabels:
        """Return the same question with other splits of the rows."""
        return replace(self.labels, rows={"train": train} if test is None else {"train": train, "test": test})

    def contents(self, rows: np.ndarray | None = None) -> set[str]:
        """Return the content hashes of the labelled images, or of some rows."""
        column = self.store.table["content_hash"].to_pylist()
        return {column[row] for row in (self.rows if rows is None else rows)}

    def folds(self, count: int, by_patient: bool = True, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
        """Split the labelled rows for a stratified cross-validation.

        Args:
            count: number of folds, at least 2.
            by_patient: keep the images of a patient together. False: images are dealt one by one (as in the Cats
                paper), and images of one patient on both sides make results too good.
            seed: of the draw.

        Returns:
            Rows to train on and to test on, for each fold.

        Raises:
            ValueError: a class would be missing from a fold (it is named).
        """
        classes, patients = self.classes_of(self.rows), self.patients_of(self.rows)
        for number, name in enumerate(self.labels.class_names):
            mine = classes == number
            units = len(np.unique(patients[mine])) if by_patient else int(mine.sum())
            if units < count or count < 2:
                raise ValueError(
                    f"{self.name}: the class {name!r} has {units} {'patients' if by_patient else 'images'}, too few "
                    f"for {count} folds; use fewer folds (at least 2), or leave the class out"
                )
        kind = StratifiedGroupKFold if by_patient else StratifiedKFold
        splitter = kind(count, shuffle=True, random_state=seed)
        parts = splitter.split(self.rows, classes, patients if by_patient else None)
        folds = [(self.rows[a], self.rows[b]) for a, b in parts]
        for train, test in folds:
            for rows in (train, test):
                missing = set(range(len(self.labels.class_names))) - set(self.classes_of(rows).tolist())
                if missing:
                    raise ValueError(
                        f"{self.name}: a fold has no image of {self.labels.class_names[min(missing)]!r}: its patients "
                        "are too few or too unequal; use fewer folds or another seed"
                    )
        return folds

    def draw(self, count: int, seed: int = 0) -> np.ndarray:
        """Draw labelled rows, stratified, at least two of each class that has two.

        The draws of one seed are nested.
        """
        classes = self.classes_of(self.rows)
        rng = np.random.default_rng(seed)
        place = np.empty(len(classes))
        for number in np.unique(classes):
            mine = rng.permutation(np.flatnonzero(classes == number))
            share = (np.arange(len(mine)) + 0.5) / len(mine)
            share[:2] -= 1  # the first two of each class come before all others
            place[mine] = share
        return np.sort(self.rows[np.argsort(place, kind="stable")[:count]])

    def loader(self, rows: np.ndarray, batch_size: int = 64, num_workers: int = 0) -> DataLoader:
        """Return batches of whole images, in order."""
        dataset = StoreDataset(self.store, rows)
        return DataLoader(dataset, batch_size=batch_size, num_workers=num_workers, collate_fn=PadCollate())

    def images(self, rows: np.ndarray, preprocessing: Preprocessing) -> Tensor:
        """Return whole images as a network sees them, (N, C, *image_size) in memory."""
        view = preprocessing.with_store(self.store).view()
        parts = [view(batch["image"], None, batch.get("extent")) for batch in self.loader(rows)]
        return torch.cat(parts)


def open_labelled_set(
    folder: str | Path,
    cache_dir: str | Path,
    *,
    name: str | None = None,
    label_column: str | None = None,
    where: str | None = None,
    stored_side: int = 256,
    num_workers: int | None = None,
) -> LabelledSet:
    """Prepare a folder of images and read its classes.

    Args:
        folder: images and a table with the columns ``file`` and ``label`` (see :func:`monai_ssl.data.read_labels`).
        cache_dir: where index and prepared images go.
        name: default: that of the folder.
        label_column: default: ``"label"``.
        where: row filter, see :func:`monai_ssl.data.select_rows`.
        stored_side: longest side of the prepared images in pixels.
        num_workers: processes that read.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it has no images or no such labels, or the labels are findings that do not exclude each other.
    """
    folder = Path(folder)
    name = name or folder.resolve().name
    store = open_radiographs(
        folder,
        cache_dir,
        max_side=stored_side,
        num_workers=num_workers,
        split_fractions={"all": 1.0},  # a study makes its own folds
        progress=False,
    )
    try:
        labels = classification_labels(store, label_column or "label", where=where, splits=("all",))
    except ValueError as error:
        raise ValueError(f"the data set {name!r}: {error}") from error
    if labels.multilabel:
        raise ValueError(f"the data set {name!r} has findings that do not exclude each other; give a column of classes")
    return LabelledSet(name, store, labels)
