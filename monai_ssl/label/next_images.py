# SPDX-License-Identifier: Apache-2.0
"""The next image at once: each strategy plans ahead, and the answer is the first of the plan that is still open."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from monai_ssl.label.pool import LabelPool
from monai_ssl.label.strategies import choose_images

__all__ = ["NextImages"]


class NextImages:
    """Plans of all strategies on one pool.

    A plan is what :func:`choose_images` answers for ``ahead`` images, so an annotator who labels in its order labels
    what one round of the strategy would have chosen.

    Args:
        pool: images as they were when they were embedded.
        ahead: images of a plan.
        seed: of the strategies.
        plans: plans made before, by strategy: rows in order.
        cold_start: see :func:`choose_images`.
    """

    def __init__(
        self,
        pool: LabelPool,
        ahead: int = 50,
        seed: int = 0,
        plans: Mapping[str, np.ndarray] | None = None,
        cold_start: str = "typicality",
    ) -> None:
        self.pool, self.ahead, self.seed, self.cold_start = pool, ahead, seed, cold_start
        self.plans: dict[str, np.ndarray] = dict(plans or {})

    def extend(self, strategy: str, taken: Collection[int] = ()) -> np.ndarray:
        """Add images to the end of a strategy's plan, as if all that are on it were labelled.

        This is the slow part (seconds with 10,000 images): do it ahead of time, in the background.

        Args:
            strategy: a name of :data:`STRATEGIES`.
            taken: rows that were labelled or put aside since the pool was made.

        Returns:
            The whole plan: rows in order.
        """
        before = self.plans.get(strategy, np.empty(0, dtype=np.int64))
        pool = self.pool.with_labelled([*taken, *before.tolist()])
        further = choose_images(strategy, pool, self.ahead, self.seed, self.cold_start)
        self.plans[strategy] = np.concatenate([before, further])
        return self.plans[strategy]

    def waiting(self, strategy: str, taken: Collection[int] = ()) -> np.ndarray:
        """Return the rows of a plan that are still open, in order; their copies have not been labelled either."""
        plan = self.plans.get(strategy, np.empty(0, dtype=np.int64))
        return plan[~self.pool.with_labelled(taken).repeated()[plan]]

    def answer(self, strategy: str, taken: Collection[int] = ()) -> int | None:
        """Return the next image, or None if all are labelled; a plan that has come to its end is extended first."""
        waiting = self.waiting(strategy, taken)
        if not len(waiting):
            self.extend(strategy, taken)
            waiting = self.waiting(strategy, taken)
        return int(waiting[0]) if len(waiting) else None
