# SPDX-License-Identifier: Apache-2.0
"""Labels that only watch a pretraining: used where they are good for it, never in its way."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch.utils.data import DataLoader

from monai_ssl.data.datasets import PadCollate
from monai_ssl.data.store import ImageStore
from monai_ssl.evaluation.labels import ClassificationLabels, LabelledStoreDataset, classification_labels
from monai_ssl.evaluation.preprocessing import Preprocessing
from monai_ssl.handlers import OnlineProbe

__all__ = ["online_probe", "probe_labels"]

logger = logging.getLogger(__name__)


def probe_labels(
    store: ImageStore,
    label_column: str | Sequence[str] | None = None,
    *,
    default: str | Sequence[str] = "label",
    classes: Sequence[str] | None = None,
    where: str | None = None,
    split: str = "val",
) -> ClassificationLabels | None:
    """Find the labels for the probes of a pretraining.

    Args:
        store: of the images.
        label_column: column(s) that the user named; see :func:`monai_ssl.evaluation.classification_labels`.
        default: what is taken without them, if the table has it.
        classes: of the question; None: all that occur.
        where: row filter.
        split: whose images are scored; the others are those of ``"train"``.

    Returns:
        The labels, or None: none were named, and there are no default ones or they are not fit for it (a class that is
        missing in a split, say), which is then logged.

    Raises:
        ValueError: the user's own column can't be used.
    """
    wanted = {"classes": classes, "where": where, "splits": ("train", split)}
    if label_column is not None:
        return classification_labels(store, label_column, **wanted)
    columns = [default] if isinstance(default, str) else list(default)
    if not set(columns) <= set(store.table.column_names):
        logger.info("no labels: training goes on without probes (name columns by label_column)")
        return None
    try:
        return classification_labels(store, default, **wanted)
    except ValueError as error:
        logger.warning("the labels in %s can't serve as a probe, training goes on without: %s", columns, error)
        return None


def online_probe(
    store: ImageStore,
    labels: ClassificationLabels | None,
    preprocessing: Preprocessing,
    *,
    split: str = "val",
    every_epochs: int = 1,
    batch_size: int = 64,
) -> OnlineProbe | None:
    """Build the handler that scores the images of ``split`` by their nearest neighbours while training goes on.

    Args:
        store: of the images.
        labels: of :func:`probe_labels`; None: there is no handler.
        preprocessing: how whole images reach the encoder.
        split: whose images are scored.
        every_epochs: epochs between measurements.
        batch_size: of the feature extraction.
    """
    if labels is None:
        return None
    bank, query = (
        DataLoader(LabelledStoreDataset(store, labels, name), batch_size=batch_size, collate_fn=PadCollate())
        for name in ("train", split)
    )
    return OnlineProbe(bank, query, view=preprocessing.view(), every_epochs=every_epochs)
