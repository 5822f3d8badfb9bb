# SPDX-License-Identifier: Apache-2.0
"""Handlers of a classifier's evaluators: write the report, write predictions."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys
from torch import nn

from monai_ssl.data.store import ImageStore
from monai_ssl.engines.distributed import is_main_process
from monai_ssl.evaluation.classifier_card import ClassifierCard, read_classifier_card
from monai_ssl.evaluation.model_handlers import BestModel, refused_files
from monai_ssl.evaluation.report import ClassifierReport, classifier_report
from monai_ssl.evaluation.run_facts import device_name
from monai_ssl.weights import atomic_file

__all__ = ["BestClassifier", "ClassifierReportWriter", "PredictionWriter"]

logger = logging.getLogger(__name__)


class BestClassifier(BestModel):
    """Saves the classifier after each validation, or only after the best one so far; see :class:`BestModel`."""

    state_name = "best_classifier"

    def __init__(
        self,
        network: nn.Module,
        card: ClassifierCard,
        path: str | os.PathLike,
        metric: str = "val_auc",
        keep: str = "best",
    ) -> None:
        super().__init__(network, card, path, metric, keep)


class _Collected:
    """Collects what an evaluator computed: logits, labels and row numbers, each row once."""

    def attach(self, engine: Engine) -> None:
        """Follow an evaluator."""
        self._logits: list[torch.Tensor] = []
        self._labels: list[torch.Tensor] = []
        self._index: list[torch.Tensor] = []
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._take)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, _: Engine) -> None:
        self._logits, self._labels, self._index = [], [], []
        self._started = time.time()

    def _take(self, engine: Engine) -> None:
        self._logits.append(engine.state.output[CommonKeys.PRED].detach().float().cpu())
        label = engine.state.output[CommonKeys.LABEL]
        if label is not None:
            self._labels.append(label.detach().cpu())
        self._index.append(torch.as_tensor(engine.state.batch["index"]).cpu())

    def _finish(self, engine: Engine) -> None:
        raise NotImplementedError


class ClassifierReportWriter(_Collected):
    """Writes the report of an evaluation and prints it: ``<name>.md``, ``.json``, ``.csv``, a picture, predictions.

    ``<name>_predictions.csv`` has path, truth and probabilities of each image, for paired comparisons of two models.

    Args:
        model_path: of the evaluated weights; their card tells the facts.
        store: of the images.
        groups: ``(M,)`` patient of each row of the store.
        output_dir: where to write.
        name: of the files.
        started: time (``time.time()``) from which the wall time counts; None: the evaluation's own.
        resamples: of the bootstrap.

    Attributes:
        report: the last report.
    """

    def __init__(
        self,
        model_path: str | os.PathLike,
        store: ImageStore,
        groups: np.ndarray,
        output_dir: str | os.PathLike,
        name: str = "test_report",
        started: float | None = None,
        resamples: int = 1000,
    ) -> None:
        self.model_path, self.store, self.groups = model_path, store, groups
        self.output_dir, self.name, self.resamples = Path(output_dir), name, resamples
        self.started = started
        self.report: ClassifierReport | None = None

    def _finish(self, engine: Engine) -> None:
        if not is_main_process():
            return
        card = read_classifier_card(self.model_path)
        labels, index = torch.cat(self._labels).numpy(), torch.cat(self._index).numpy()
        probabilities = card.probabilities(torch.cat(self._logits)).numpy()
        facts = card.run_facts(time.time() - (self.started or self._started), device_name(engine.state.device))
        self.report = classifier_report(
            labels,
            probabilities,
            card.class_names,
            facts,
            groups=self.groups[index],
            title=self.name.removesuffix("_report"),
            noun=card.noun,
            seen=card.prepared().describe(),
            resamples=self.resamples,
        )
        path = self.report.save(self.output_dir, self.name)
        self._write_predictions(card, index, labels, probabilities)
        print(f"{self.report.summary()}\nreport: {path}", flush=True)

    def _write_predictions(
        self, card: ClassifierCard, index: np.ndarray, labels: np.ndarray, probabilities: np.ndarray
    ) -> None:
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(["path", "truth", *card.class_names])
        paths = self.store.table["path"].to_pylist()
        for row, label, p in zip(index, labels, probabilities, strict=True):
            writer.writerow([paths[row], _truth(label, card.class_names), *(f"{value:.6g}" for value in p)])
        with atomic_file(self.output_dir / f"{self.name}_predictions.csv") as file:
            file.write(text.getvalue().encode())


class PredictionWriter(_Collected):
    """Writes the probabilities of all images as one JSON file, with what was refused and how images were prepared.

    Args:
        model_path: of the weights.
        store: of the images.
        path: of the JSON file.
    """

    def __init__(self, model_path: str | os.PathLike, store: ImageStore, path: str | os.PathLike) -> None:
        self.model_path, self.store, self.path = model_path, store, Path(path)

    def _finish(self, engine: Engine) -> None:
        card = read_classifier_card(self.model_path)
        index, names = torch.cat(self._index).numpy(), card.class_names
        probabilities = card.probabilities(torch.cat(self._logits)).numpy()
        paths = self.store.table["path"].to_pylist()
        content = {
            "model": {
                "architecture": card.architecture,
                "task": card.task,
                "classes": names,
                "lineage": card.lineage_in_words,
                "weights_sha256": card.weights_sha256,
            },
            "preprocessing": card.preprocessing,
            card.noun: [
                {
                    "path": paths[row],
                    "probabilities": dict(zip(names, (round(float(value), 6) for value in p), strict=True)),
                    "decision": _decision(p, names, card.multilabel),
                }
                for row, p in zip(index, probabilities, strict=True)
            ],
            "refused": refused_files(self.store),
        }
        with atomic_file(self.path) as file:
            file.write(json.dumps(content, indent=1).encode())
        print(f"{len(index)} {card.noun} classified, {len(self.store.refused)} refused: {self.path}", flush=True)


def _decision(probabilities: np.ndarray, names: Sequence[str], multilabel: bool) -> str | list[str]:
    if multilabel:
        return [name for name, value in zip(names, probabilities, strict=True) if value >= 0.5]
    return names[int(probabilities.argmax())]


def _truth(label: np.ndarray, names: Sequence[str]) -> str:
    if np.ndim(label) == 0:
        return names[int(label)] if label >= 0 else ""
    return "|".join(name for name, value in zip(names, label, strict=True) if value == 1)
