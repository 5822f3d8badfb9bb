# SPDX-License-Identifier: Apache-2.0
"""Handlers of a segmentation network's evaluators: keep the best weights, write the report."""

from __future__ import annotations

import os
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys
from torch import nn

from monai_ssl.data.store import ImageStore
from monai_ssl.engines.distributed import is_main_process
from monai_ssl.evaluation.model_handlers import BestModel
from monai_ssl.evaluation.preprocessing import shown_spacing
from monai_ssl.evaluation.run_facts import device_name, shown_number
from monai_ssl.evaluation.segmentation_card import SegmenterCard, read_segmenter_card
from monai_ssl.evaluation.segmentation_labels import class_of_value
from monai_ssl.evaluation.segmentation_plots import (
    SlicedVolume,
    cut_slices,
    segmentation_png,
    slice_boxes,
    slice_places,
)
from monai_ssl.evaluation.segmentation_report import SegmentationReport, class_mean, segmentation_report
from monai_ssl.metrics import MaskScore, mask_scores

__all__ = ["BestSegmenter", "SegmentationReportWriter"]


class BestSegmenter(BestModel):
    """Saves the network after each validation, or only after the best one so far; see :class:`BestModel`."""

    state_name = "best_segmenter"

    def __init__(
        self,
        network: nn.Module,
        card: SegmenterCard,
        path: str | os.PathLike,
        metric: str = "val_dice",
        keep: str = "best",
    ) -> None:
        super().__init__(network, card, path, metric, keep)


@dataclass
class _Scored:
    """A volume that was scored: its row, its scores, and the prediction's slices, packed."""

    row: int
    scores: list[MaskScore]
    places: tuple[int, ...]
    slices: list[bytes]

    @property
    def dice(self) -> float:
        """Mean over the classes that are defined; NaN without any."""
        values = np.array([[score.dice for score in self.scores]])
        return float("nan") if np.isnan(values).all() else class_mean(values)


class SegmentationReportWriter:
    """Writes the report of an evaluation and prints it, with a table of all volumes and a picture of three.

    ``<name>.md``, ``.json``, ``.csv``, ``<name>_volumes.csv`` (every volume and class, for paired comparisons, see
    :func:`monai_ssl.evaluation.compare_segmentations`) and ``<name>_examples.png``: the best, the median and the worst
    volume. Scores are taken on the grid of the store.

    Args:
        model_path: of the evaluated weights; their card tells the facts.
        store: of the volumes.
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
        self.report: SegmentationReport | None = None
        self._scored: list[_Scored] = []

    def attach(self, engine: Engine) -> None:
        """Follow an evaluator."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._take)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, _: Engine) -> None:
        self._scored = []
        self._started = time.time()
        self._card = read_segmenter_card(self.model_path)

    def _take(self, engine: Engine) -> None:
        if not is_main_process():
            return
        output = engine.state.output
        predicted = output[CommonKeys.PRED].argmax(1)[0].cpu().numpy().astype(np.uint8)
        true = output[CommonKeys.LABEL][0, 0].cpu().numpy()
        row = int(engine.state.batch["index"][0])
        scores = mask_scores(predicted, true, len(self._card.class_names), self.store.spacing_mm(row))
        places = slice_places(true, predicted)
        packed = [zlib.compress(part.tobytes(), 1) for part in cut_slices(predicted, places)]
        self._scored.append(_Scored(row, scores, places, packed))

    def _finish(self, engine: Engine) -> None:
        if not is_main_process():
            return
        rows = [scored.row for scored in self._scored]
        paths = self.store.table["path"].to_pylist()
        spacing = self.store.recipe.get("spacing_mm")
        self.report = segmentation_report(
            [scored.scores for scored in self._scored],
            self._card.class_names,
            self._card.run_facts(time.time() - (self.started or self._started), device_name(engine.state.device)),
            paths=[paths[row] for row in rows],
            groups=self.groups[rows],
            spacing="each volume's own spacing" if spacing is None else shown_spacing(spacing),
            picture=self._picture(paths),
            title=self.name.removesuffix("_report"),
            resamples=self.resamples,
        )
        path = self.report.save(self.output_dir, self.name)
        print(f"{self.report.summary()}\nreport: {path}", flush=True)

    def _picture(self, paths: list[str]) -> bytes | None:
        order = sorted((s for s in self._scored if s.dice == s.dice), key=lambda scored: -scored.dice)
        if not order:
            return None
        places = {"best": 0, "median": len(order) // 2, "worst": len(order) - 1}
        chosen = {}
        for word, place in places.items():
            chosen.setdefault(place, []).append(word)
        rows = [self._sliced(order[place], paths, ", ".join(words)) for place, words in chosen.items()]
        return segmentation_png(rows, self._card.class_names)

    def _sliced(self, scored: _Scored, paths: list[str], word: str) -> SlicedVolume:
        row, lookup = scored.row, class_of_value(self._card.label_values)
        boxes = slice_boxes(self.store.shape(row), scored.places)
        image = [self.store.read(row, box).squeeze(axis) for axis, box in enumerate(boxes)]
        truth = [lookup[self.store.read_label_map(row, box).squeeze(axis)] for axis, box in enumerate(boxes)]
        predicted = [
            np.frombuffer(zlib.decompress(part), np.uint8).reshape(like.shape)
            for part, like in zip(scored.slices, image, strict=True)
        ]
        title = f"{word}: {paths[row]}, Dice {shown_number(scored.dice)}"
        return SlicedVolume(title, image, truth, predicted, self.store.spacing_mm(row))
