# SPDX-License-Identifier: Apache-2.0
"""Which image next: plans of all strategies on disk, made in the background, answered from at once."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from monai_ssl.label.annotation.embedding import EmbeddedImages
from monai_ssl.label.annotation.folder import StudiesFolder
from monai_ssl.label.next_images import NextImages
from monai_ssl.label.pool import LabelPool
from monai_ssl.label.strategies import STRATEGIES, effective_strategy
from monai_ssl.weights import atomic_file

__all__ = ["SavedPlans", "make_plans", "read_plans"]

_FILE = "plans.json"


@dataclass(frozen=True)
class SavedPlans:
    """Plans as ids.

    Attributes:
        ids: images that were embedded.
        labelled: how many of them were labelled when the plans were made.
        plans: strategy to ids in order.
        chosen_by: strategy to the one that made its plan: ``"typicality"`` where predictions were missing.
        copies: id to the id that it repeats.
        note: why predictions are missing, or empty.
    """

    ids: list[str]
    labelled: int
    plans: dict[str, list[str]]
    chosen_by: dict[str, str]
    copies: dict[str, str] = field(default_factory=dict)
    note: str = ""

    def waiting(self, strategy: str, taken: Collection[str]) -> list[str]:
        """Return a plan's images that are still open, in order; copies of taken images are left out."""
        closed = {self.copies.get(image, image) for image in taken}
        return [image for image in self.plans.get(strategy, ()) if self.copies.get(image, image) not in closed]


def make_plans(
    folder: StudiesFolder,
    embedded: EmbeddedImages,
    labelled: Collection[str],
    uncertainty: dict[str, np.ndarray],
    *,
    num_classes: int = 2,
    ahead: int = 50,
    seed: int = 0,
    note: str = "",
) -> SavedPlans:
    """Let every strategy plan ahead, and keep the plans.

    Args:
        folder: of the studies.
        embedded: features.
        labelled: ids with a label.
        uncertainty: kind to ``(N,)`` scores; empty: no predictions yet.
        num_classes: classes that are expected.
        ahead: images of a plan.
        seed: of the strategies.
        note: why predictions are missing.
    """
    flags = np.isin(embedded.ids, list(labelled))
    pool = LabelPool.of_features(
        embedded.features,
        flags,
        duplicate_of=embedded.duplicate_of,
        uncertainty=uncertainty,
        num_classes=max(num_classes, 2),
    )
    images = NextImages(pool, ahead, seed)
    made = SavedPlans(
        ids=embedded.ids,
        labelled=int(flags.sum()),
        plans={name: [embedded.ids[row] for row in images.extend(name)] for name in STRATEGIES},
        chosen_by={name: effective_strategy(name, pool) for name in STRATEGIES},
        copies={
            embedded.ids[row]: embedded.ids[stands] for row, stands in enumerate(embedded.duplicate_of) if stands >= 0
        },
        note=note,
    )
    with atomic_file(folder.state / _FILE) as file:
        file.write(json.dumps(vars(made), indent=1).encode())
    return made


def read_plans(folder: StudiesFolder) -> SavedPlans | None:
    """Return the plans, None if there are none or they are damaged."""
    path = plans_path(folder)
    try:
        return SavedPlans(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def plans_path(folder: StudiesFolder) -> Path:
    """Return where the plans are."""
    return folder.state / _FILE
