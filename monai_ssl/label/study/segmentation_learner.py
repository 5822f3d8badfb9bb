# SPDX-License-Identifier: Apache-2.0
"""Segmentation: the task's own bundle trained on the labelled volumes, from the pretrained encoder, in each round."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from monai.data import DataLoader

from monai_ssl.data import PadCollate, StoreDataset
from monai_ssl.evaluation import extract_features
from monai_ssl.evaluation.segmentation_report import class_mean
from monai_ssl.evaluation.study.question import Question
from monai_ssl.evaluation.study.results import numbered
from monai_ssl.evaluation.study.training_cells import run_bundle
from monai_ssl.label.study.learner import Learned, repeated_rows
from monai_ssl.label.volume_uncertainty import volume_uncertainty

__all__ = ["SegmentationLearner"]


class SegmentationLearner:
    """See :class:`monai_ssl.label.study.learner.Learner`.

    Test images have one Dice for each class. Trainings keep their last weights unless the task says otherwise: to keep
    the best would use the labels of the validation split beside the budget. The epistemic uncertainty is that of
    dropout, so the network must have some (``network_args: {dropout_prob: 0.2}`` of a SegResNet).

    Args:
        question: the task, with all its training labels.
        members: passes with dropout.
    """

    measure = "dice"

    def __init__(self, question: Question, members: int) -> None:
        self._question, self._members = question, members
        labels, store = question.labels, question.store
        self._rows, self._test = labels.rows["train"], labels.rows["test"]
        self.num_classes = max(len(labels.class_names), 2)
        self.patients = numbered(labels.groups[self._test])
        self.truth = np.zeros(len(self._test))  # the figures are ready when they come from the bundle
        self.paths = store.table["path"].take(self._rows).to_pylist()
        self.duplicate_of, self.split_hash = repeated_rows(store, self._rows), labels.split_hash
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            encoder = question.start.build(len(labels.class_names))
        features, _ = extract_features(encoder, self._loader(self._rows), question.preprocessing.view(), self._device())
        self.features = features.numpy()

    def learn(self, chosen: np.ndarray, seed: int, kinds: Collection[str], folder: Path) -> Learned:
        """Train the bundle; its weights are removed when the pool has been looked at, its report stays."""
        question, run = self._question, folder / "run"
        labels = question.labels
        rows = {**labels.rows, "train": np.sort(self._rows[chosen])}
        run_bundle(
            question,
            output_dir=str(run),
            seed=seed,
            store=question.store,
            labels=replace(labels, rows=rows),
            keep=question.task.settings.get("keep", "last"),
        )
        unsure = self._uncertainty(run / "model.pt", chosen, kinds) if kinds else {}
        (run / "model.pt").unlink()
        shutil.rmtree(run / "tensorboard", ignore_errors=True)
        return Learned(self._dice(run / "test_report_volumes.csv"), unsure)

    def score(self, truth: np.ndarray, values: np.ndarray) -> float:
        """Mean Dice: of each class over the volumes, then over the classes."""
        return class_mean(values)

    def _uncertainty(self, path: Path, chosen: np.ndarray, kinds: Collection[str]) -> dict[str, np.ndarray]:
        """Of the volumes that are not labelled; NaN of the others."""
        left = np.setdiff1d(np.arange(len(self._rows)), chosen)
        options = {"members": self._members, "device": self._device()}
        scores = volume_uncertainty(path, self._question.store, self._rows[left], kinds, **options)
        found = {kind: np.full(len(self._rows), np.nan) for kind in kinds}
        for kind, values in scores.items():
            found[kind][left] = values
        return found

    def _dice(self, path: Path) -> np.ndarray:
        """Dice (N, K) of the test volumes in the bundle's table; NaN where a class is neither there nor given."""
        labels, table = self._question.labels, self._question.store.table["path"]
        place = {name: i for i, name in enumerate(table.take(self._test).to_pylist())}
        column = {name: k for k, name in enumerate(labels.class_names)}
        values = np.full((len(place), len(column)), np.nan)
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["dice"]:
                    values[place[row["path"]], column[row["class"]]] = float(row["dice"])
        return values

    def _loader(self, rows: np.ndarray) -> DataLoader:
        size = min(self._question.study.batch_size, 8)
        dataset = StoreDataset(self._question.store, rows)
        return DataLoader(dataset, batch_size=size, num_workers=0, collate_fn=PadCollate())

    def _device(self) -> str:
        return self._question.study.device or ("cuda" if torch.cuda.is_available() else "cpu")
