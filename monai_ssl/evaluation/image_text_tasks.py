# SPDX-License-Identifier: Apache-2.0
"""What an image-text model can be asked about the images of a store: by their reports, their classes, and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monai_ssl.data.reports import Reports
from monai_ssl.data.splits import split_rows
from monai_ssl.data.store import ImageStore
from monai_ssl.evaluation.image_text import embed_text_groups, embed_texts
from monai_ssl.evaluation.image_text_file import OpenImageText
from monai_ssl.evaluation.labelled_rows import filtered_rows, patients_of
from monai_ssl.evaluation.labels import ClassificationLabels
from monai_ssl.evaluation.retrieval import RetrievalTask, class_retrieval, report_retrieval
from monai_ssl.evaluation.zero_shot import Prompts, zero_shot_probabilities

__all__ = ["ImageTextQuestions", "evaluated_rows"]


def evaluated_rows(store: ImageStore, split: str, where: str | None = None) -> np.ndarray:
    """Return the rows of a split that meet a filter.

    Args:
        store: of the images.
        split: ``"train"``, ``"val"``, ``"test"``, or ``"all"`` for every image.
        where: row filter, see :func:`monai_ssl.data.select_rows`.

    Raises:
        ValueError: no image is left.
    """
    rows = np.arange(len(store)) if split == "all" else split_rows(store.table, split)
    rows = rows[filtered_rows(store.table, where)[rows]]
    if not len(rows):
        raise ValueError(f"no image of the split {split!r} of {store.folder} meets where={where!r}")
    return rows


class ImageTextQuestions:
    """The questions that can be asked about some images, with their right answers.

    * image to report, report to image: where reports are given. Reports of the same sentences are one.
    * image to image: where labels are given. A right image is of the same class, of findings: has the same ones. A
      patient's own images are no candidates.
    * text to image: where labels and prompts are given. Each positive prompt is a query.
    * zero-shot classification: likewise.

    Args:
        store: of the images.
        rows: ``(N,)`` rows of the store that are asked about.
        reports: of the store's images, or None.
        labels: of the store's images, or None.
        prompts: for the labels' classes, or None.
        report_ks: first items looked at where reports are found or asked for.
        class_ks: first items looked at where classes are.

    Attributes:
        prompts: those of the labels' classes, in their order, or None.

    Raises:
        ValueError: prompts lack a class, are of another kind than the labels, or are given without labels; or there is
            nothing to ask.
    """

    def __init__(
        self,
        store: ImageStore,
        rows: np.ndarray,
        *,
        reports: Reports | None = None,
        labels: ClassificationLabels | None = None,
        prompts: Prompts | None = None,
        report_ks: Sequence[int] = (1, 5, 10),
        class_ks: Sequence[int] = (5, 10, 100),
    ) -> None:
        if reports is None and labels is None:
            raise ValueError("there is nothing to ask: give reports, or labels (with prompts)")
        if prompts is not None and labels is None:
            raise ValueError("prompts need labels, to know who is right: give label_column")
        if prompts is not None and prompts.multilabel != labels.multilabel:
            kinds = ("competing classes", "findings")
            raise ValueError(
                f"the prompts are of {kinds[prompts.multilabel]}, the labels of {kinds[labels.multilabel]}"
            )
        self.rows, self.labels, self.prompts = np.asarray(rows), labels, prompts and prompts.of(labels.class_names)
        self.patients = patients_of(store.table)[self.rows]
        self.report_ks, self.class_ks = tuple(report_ks), tuple(class_ks)
        self.sentences = None if reports is None else [reports.sentences[row] for row in self.rows]
        if self.sentences is not None and not any(self.sentences):
            raise ValueError(f"none of the {len(rows)} images asked about has a report")

    @property
    def prompt_texts(self) -> list[str]:
        """The queries of "text to image": all positive prompts, class after class."""
        return [] if self.prompts is None else [text for group in self.prompts.positive for text in group]

    def tasks(self, vectors: Tensor, opened: OpenImageText, device: torch.device | str = "cpu") -> list[RetrievalTask]:
        """Ask a model.

        Args:
            vectors: ``(N, D)`` of the images, by the model.
            opened: the model.
            device: where to compute the texts' vectors.
        """
        found = []
        if self.sentences is not None:
            found += self._by_report(vectors, opened, device)
        if self.labels is not None:
            names, classes = self.classes()
            found.append(
                class_retrieval(
                    "image to image",
                    vectors,
                    vectors,
                    classes,
                    classes,
                    query_patients=self.patients,
                    item_patients=self.patients,
                    ks=self.class_ks,
                    class_names=names,
                )
            )
        if self.prompts is not None:
            asked = np.repeat(np.arange(len(self.prompts.names)), [len(group) for group in self.prompts.positive])
            found.append(
                class_retrieval(
                    "text to image",
                    embed_texts(opened.model, opened.tokenizer, self.prompt_texts, device),
                    vectors,
                    asked,
                    self.labels.targets[self.rows],
                    item_patients=self.patients,
                    ks=self.class_ks,
                    class_names=self.prompts.names,
                )
            )
        return found

    def probabilities(self, vectors: Tensor, opened: OpenImageText, device: torch.device | str = "cpu") -> np.ndarray:
        """Return ``(N, K)`` probabilities by the prompts, see :func:`monai_ssl.evaluation.zero_shot_probabilities`."""
        options: dict[str, Any] = {"temperature": opened.temperature, "device": device}
        return zero_shot_probabilities(vectors, self.prompts, opened.model, opened.tokenizer, **options).numpy()

    def _by_report(self, vectors: Tensor, opened: OpenImageText, device: torch.device | str) -> list[RetrievalTask]:
        places = [place for place, own in enumerate(self.sentences) if own]
        number: dict[tuple[str, ...], int] = {}
        owner = np.array([number.setdefault(tuple(self.sentences[place]), len(number)) for place in places])
        reports = embed_text_groups(opened.model, opened.tokenizer, list(number), device)
        return report_retrieval(vectors[places], reports, owner, patients=self.patients[places], ks=self.report_ks)

    def classes(self) -> tuple[list[str], np.ndarray]:
        """Return the classes' names and each image's class ``(N,)``, -1 where it is not known.

        The findings of an image, taken together, are its class.
        """
        targets = self.labels.targets[self.rows]
        if targets.ndim == 1:
            return self.labels.class_names, targets
        kinds, classes = np.unique(targets, axis=0, return_inverse=True)
        classes = np.where((targets < 0).any(axis=1), -1, classes.reshape(-1))
        named = [[name for name, has in zip(self.labels.class_names, kind == 1, strict=True) if has] for kind in kinds]
        return [" + ".join(names) or "none of them" for names in named], classes
