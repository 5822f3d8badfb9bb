# SPDX-License-Identifier: Apache-2.0
"""Handler that asks an image-text model everything there is to ask, beside the same network untrained."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys

from monai_ssl.data.pool import pool_fingerprint
from monai_ssl.data.store import ImageStore
from monai_ssl.engines.distributed import is_main_process
from monai_ssl.evaluation.hit_sheet import Hit, HitRow, hit_sheet_html, hit_sheet_png
from monai_ssl.evaluation.image_text_file import OpenImageText
from monai_ssl.evaluation.image_text_tasks import ImageTextQuestions
from monai_ssl.evaluation.retrieval import RetrievalTask, score_retrieval
from monai_ssl.evaluation.retrieval_report import RetrievalReport, retrieval_report
from monai_ssl.evaluation.run_facts import RunFacts, device_name
from monai_ssl.evaluation.zero_shot import score_zero_shot

__all__ = ["ImageTextReportWriter"]

logger = logging.getLogger(__name__)

_SHEET_QUERIES, _SHEET_HITS = 5, 8
UNTRAINED_NOTE = (
    "**No model was given: these are the figures of a network that was never trained.** They show what chance looks "
    "like on this data. Give a model by `--model_file`."
)


class ImageTextReportWriter:
    """Writes ``<name>.md``, ``.json``, ``.csv`` and pictures when an evaluator has embedded all images.

    The evaluator's network is the image side of the model, its batches hold ``"index"``. An untrained network of the
    same kind embeds the same batches, and is asked the same questions. No text of a report is written anywhere; the
    sheets show prompts, images and, in the page, paths.

    Args:
        opened: the model.
        questions: about the images.
        store: of the images.
        output_dir: where to write.
        name: of the files.
        title: what is evaluated: the split.
        compare_untrained: whether to compare; a model that was never trained itself is not.
        resamples: of the bootstrap.
        confidence: of the intervals.
        seed: of the untrained weights and the bootstrap.

    Attributes:
        report: the last report.
    """

    def __init__(
        self,
        opened: OpenImageText,
        questions: ImageTextQuestions,
        store: ImageStore,
        output_dir: str | os.PathLike,
        name: str = "test_report",
        title: str = "test",
        compare_untrained: bool = True,
        resamples: int = 1000,
        confidence: float = 0.95,
        seed: int = 0,
    ) -> None:
        self.opened, self.questions, self.store = opened, questions, store
        self.output_dir, self.name, self.title, self.seed = Path(output_dir), name, title, seed
        self.options = {"n": resamples, "confidence": confidence, "seed": seed}
        self.untrained = opened.untrained(seed) if compare_untrained and opened.trained else None
        self.report: RetrievalReport | None = None

    def attach(self, engine: Engine) -> None:
        """Follow an evaluator."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._take)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        self._vectors: list[torch.Tensor] = []
        self._others: list[torch.Tensor] = []
        self._index: list[torch.Tensor] = []
        self._started = time.time()
        if self.untrained is not None:
            self.untrained.model.to(engine.state.device).eval()

    def _take(self, engine: Engine) -> None:
        output = engine.state.output
        self._vectors.append(output[CommonKeys.PRED].detach().float().cpu())
        self._index.append(torch.as_tensor(engine.state.batch["index"]).cpu())
        if self.untrained is not None:
            with torch.no_grad():
                self._others.append(self.untrained.model.embed_images(output[CommonKeys.IMAGE]).float().cpu())

    def _finish(self, engine: Engine) -> None:
        if not is_main_process():
            return
        index = torch.cat(self._index).numpy()
        if not np.array_equal(index, self.questions.rows):
            raise ValueError("the evaluator saw other images than the questions are about")
        device, vectors = engine.state.device, torch.cat(self._vectors)
        tasks = self.questions.tasks(vectors, self.opened, device)
        others: list[RetrievalTask | None] = [None] * len(tasks)
        if self.untrained is not None:
            others = list(self.questions.tasks(torch.cat(self._others), self.untrained, device))
        rows = [row for pair in zip(tasks, others, strict=True) for row in score_retrieval(*pair, **self.options)]
        if self.questions.prompts is not None:
            rows += self._zero_shot(vectors, device)
        facts = RunFacts(
            "zero-shot", self.opened.lineage, 0.0, 0, self.seed, pool_fingerprint(self.store, index),
            round(time.time() - self._started, 1), device_name(device),
        )  # fmt: skip
        self.report = retrieval_report(
            rows,
            facts,
            title=self.title,
            notes=[*([] if self.opened.trained else [UNTRAINED_NOTE]), self._seen()],
            pictures=self._sheets(tasks),
            resamples=self.options["n"],
            confidence=self.options["confidence"],
        )
        path = self.report.save(self.output_dir, self.name)
        print(f"{self.report.summary()}\nreport: {path}", flush=True)

    def _zero_shot(self, vectors: torch.Tensor, device: Any) -> list[dict[str, Any]]:
        questions = self.questions
        other = None
        if self.untrained is not None:
            other = questions.probabilities(torch.cat(self._others), self.untrained, device)
        return score_zero_shot(
            questions.labels.targets[questions.rows],
            questions.probabilities(vectors, self.opened, device),
            questions.prompts.names,
            other=other,
            groups=questions.patients,
            **self.options,
        )

    def _seen(self) -> str:
        count, patients = len(self.questions.rows), len(np.unique(self.questions.patients))
        return f"{count} images of {patients} patients. The network sees {self.opened.preprocessing.describe()}."

    def _sheets(self, tasks: list[RetrievalTask]) -> dict[str, bytes]:
        """Sheets of some queries of the tasks whose queries may be shown: images and prompts, no reports."""
        pictures: dict[str, bytes] = {}
        paths = self.store.table["path"].to_pylist()
        for task in tasks:
            if task.name not in ("image to image", "text to image"):
                continue
            rows = []
            for query in self._shown_queries(task):
                hits = [
                    Hit(self.store.read(row), cosine, right, paths[row])
                    for item, cosine, right in task.first(query, _SHEET_HITS)
                    for row in [int(self.questions.rows[item])]
                ]
                rows.append(HitRow(*self._query(task, query, hits)))
            if not rows:  # no query has a right answer
                continue
            ending = "_" + task.name.replace(" ", "_")
            title = f"{self.title}, {task.name}: framed green where the class is right"
            pictures |= {f"{ending}.png": hit_sheet_png(rows, title), f"{ending}.html": hit_sheet_html(rows, title)}
        return pictures

    def _shown_queries(self, task: RetrievalTask) -> list[int]:
        """The first query of each class that has a right answer, and no more than fit on a sheet."""
        able = task.relevant.any(dim=1).numpy()
        firsts = [np.flatnonzero(able & (task.classes == name)) for name in dict.fromkeys(task.classes.tolist())]
        return [int(found[0]) for found in firsts if len(found)][:_SHEET_QUERIES]

    def _query(self, task: RetrievalTask, query: int, hits: list[Hit]) -> tuple[str, list[Hit], np.ndarray | None]:
        place = int(task.places[query])
        if task.name == "text to image":
            return self.questions.prompt_texts[place], hits, None
        return str(task.classes[query]), hits, self.store.read(int(self.questions.rows[place]))
