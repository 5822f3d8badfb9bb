# SPDX-License-Identifier: Apache-2.0
"""Label maps of several sources that take part in a pretraining.

For :class:`monai_ssl.methods.Hybrid`. Labels are chosen as fine-tuning chooses them, so that pretraining and
fine-tuning with a tenth of the labels see the same tenth.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from monai_ssl.data.sources import ImageSource, probed_source
from monai_ssl.evaluation.segmentation_labels import Classes, SegmentationLabels, segmentation_labels

__all__ = ["MixtureLabelMaps", "mixture_label_maps"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MixtureLabelMaps:
    """Which label maps of which sources are shown, and what their values mean.

    Attributes:
        labels: of each source that has label maps, the question on its volumes.
        class_names: K names; label maps hold 1 to K in their order, 0 is the background.
    """

    labels: dict[str, SegmentationLabels]
    class_names: list[str]

    @property
    def rows(self) -> dict[str, np.ndarray]:
        """Rows of each source's store whose label maps are shown."""
        return {name: labels.rows["train"] for name, labels in self.labels.items()}

    def lookup(self) -> np.ndarray:
        """Return (256,) uint8: the class of each value that a label map may have."""
        return next(iter(self.labels.values())).lookup()


def mixture_label_maps(
    sources: Mapping[str, ImageSource],
    classes: Classes | None = None,
    *,
    names: Sequence[str] | None = None,
    label_fraction: float = 1.0,
    seed: int = 0,
) -> MixtureLabelMaps:
    """Take the label maps of all sources that have some, of each a share.

    Args:
        sources: of :func:`monai_ssl.data.open_mixture`.
        classes: see :func:`segmentation_labels`: the same in all sources. None: every value that occurs; then one
            source only may have label maps.
        names: of the sources to take, where the label maps of others mean something else; None: all.
        label_fraction: of each source: share of its labelled training volumes, or their number.
        seed: of the choice.

    Raises:
        ValueError: no source has label maps, several have and ``classes`` are not named, or see
            :func:`segmentation_labels`; the message names the source.
    """
    labelled = {}
    for name in sources if names is None else names:
        source = probed_source(sources, name)
        if source.kind == "volumes" and any(source.store.has_label_map(row) for row in range(len(source.store))):
            labelled[name] = source
        else:
            logger.info("source %s: no label maps", name)
    if not labelled:
        raise ValueError(
            f"none of the sources {', '.join(sources)} has a label map: name them in the column 'label_map' of a "
            "source's labels_file"
        )
    if classes is None and len(labelled) > 1:
        raise ValueError(f"the sources {', '.join(labelled)} have label maps: say what their values mean, by classes")
    found = {}
    for name, source in labelled.items():
        try:
            found[name] = segmentation_labels(
                source.store,
                classes,
                where=source.where,
                label_fraction=label_fraction,
                seed=seed,
                splits=("train",),
            )
        except ValueError as error:
            raise ValueError(f"source {name!r}: {error}") from error
    return MixtureLabelMaps(found, next(iter(found.values())).class_names)
