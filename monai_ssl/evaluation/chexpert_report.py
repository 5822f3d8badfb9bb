# SPDX-License-Identifier: Apache-2.0
"""An image-text model on the CheXpert 8x200 retrieval sets, beside chance and the same network untrained."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monai_ssl.evaluation.chexpert_retrieval import ChexpertRetrieval, read_chexpert_retrieval
from monai_ssl.evaluation.image_text import embed_files, embed_texts
from monai_ssl.evaluation.image_text_file import OpenImageText
from monai_ssl.evaluation.retrieval import RetrievalTask, class_retrieval, score_retrieval
from monai_ssl.evaluation.retrieval_report import RetrievalReport, retrieval_report
from monai_ssl.evaluation.run_facts import RunFacts, device_name

__all__ = ["report_chexpert_retrieval"]


def report_chexpert_retrieval(
    opened: OpenImageText,
    folder: str | os.PathLike,
    images: str | os.PathLike,
    output_dir: str | os.PathLike | None = None,
    *,
    ks: Sequence[int] = (5, 10, 100),
    compare_untrained: bool = True,
    device: torch.device | str = "cpu",
    batch_size: int = 32,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> RetrievalReport:
    """Rank the 1,600 candidates for every query image and sentence, as ConVIRT's section 4.3 does.

    A hit has the query's class. The intervals resample the patients of the query images, and for sentences those of the
    candidates.

    Args:
        opened: the model.
        folder: of the released sets, see :func:`read_chexpert_retrieval`.
        images: CheXpert's folder or the one above it.
        output_dir: where ``chexpert_8x200_report.*`` is written; None writes nothing.
        ks: first candidates looked at.
        compare_untrained: whether the same network without training is asked too.
        device: where to compute.
        batch_size: images at once.
        resamples: of the bootstrap.
        confidence: of the intervals.
        seed: of the untrained weights and the bootstrap.

    Raises:
        FileNotFoundError: files or images are missing.
        ValueError: the files are not as released, or an image can't be read.
    """
    started, found = time.time(), read_chexpert_retrieval(folder, images)
    options = {"n": resamples, "confidence": confidence, "seed": seed}
    models = [opened, *([opened.untrained(seed)] if compare_untrained and opened.trained else [])]
    asked = [_tasks(model, found, tuple(ks), device, batch_size) for model in models]
    rows = [row for tasks in zip(*asked, strict=True) for row in score_retrieval(*tasks, **options)]
    facts = RunFacts(
        "zero-shot", opened.lineage, 0.0, 0, seed, "", round(time.time() - started, 1), device_name(device)
    )
    counts = f"{len(found.candidates)} candidates of {len(found.class_names)} classes"
    report = retrieval_report(
        rows,
        facts,
        title="CheXpert 8x200",
        notes=[f"{counts}. The network sees {opened.preprocessing.describe()}."],
        resamples=resamples,
        confidence=confidence,
    )
    if output_dir is not None:
        path = report.save(output_dir, "chexpert_8x200_report")
        print(f"{report.summary()}\nreport: {path}", flush=True)
    return report


def _tasks(
    opened: OpenImageText, found: ChexpertRetrieval, ks: tuple[int, ...], device: Any, batch_size: int
) -> list[RetrievalTask]:
    vectors = _embedded(opened, [*found.candidates, *found.image_queries], device, batch_size)
    candidates, queries = vectors[: len(found.candidates)], vectors[len(found.candidates) :]
    shared = {"ks": ks, "class_names": found.class_names}
    tasks = []
    if found.image_queries:
        tasks.append(
            class_retrieval(
                "image to image",
                queries,
                candidates,
                found.image_query_classes,
                found.candidate_classes,
                query_patients=found.patients(found.image_queries),
                **shared,
            )
        )
    if found.text_queries:
        texts = embed_texts(opened.model, opened.tokenizer, found.text_queries, device)
        classes, patients = (found.text_query_classes, found.candidate_classes), found.patients(found.candidates)
        tasks.append(class_retrieval("text to image", texts, candidates, *classes, item_patients=patients, **shared))
    return tasks


def _embedded(opened: OpenImageText, files: list[Path], device: Any, batch_size: int) -> Tensor:
    """Vectors of all files; a benchmark with an image less would be another one."""
    view, policy = opened.preprocessing.view(), opened.preprocessing.intensity_policy()
    vectors, _, refused = embed_files(opened.model, files, view, device, policy=policy, batch_size=batch_size)
    if refused:
        raise ValueError(f"{len(refused)} of {len(files)} images can't be read; {refused[0][0]}: {refused[0][1]}")
    return vectors
