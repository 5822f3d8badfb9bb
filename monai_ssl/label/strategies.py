# SPDX-License-Identifier: Apache-2.0
"""All strategies by name, and the one way to ask any of them for the next images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from monai_ssl.label.cluster_uncertainty import cluster_uncertain_images
from monai_ssl.label.core_set import core_set_images
from monai_ssl.label.entropy import entropy_images
from monai_ssl.label.epistemic import epistemic_images
from monai_ssl.label.margin import margin_images
from monai_ssl.label.pool import LabelPool
from monai_ssl.label.probability_coverage import covering_images
from monai_ssl.label.random_images import random_images
from monai_ssl.label.typicality import typical_images

__all__ = ["STRATEGIES", "LabelStrategy", "choose_images"]


@dataclass(frozen=True)
class LabelStrategy:
    """A strategy with what it needs.

    Attributes:
        choose: called as ``choose(pool, num, seed)`` with a pool without duplicates; returns rows in order.
        says: what it chooses, in a few words.
        needs: the kind of uncertainty that must be known, or None: it works from the first image on.
    """

    choose: Callable[[LabelPool, int, int], np.ndarray]
    says: str
    needs: str | None = None


STRATEGIES: dict[str, LabelStrategy] = {
    "random": LabelStrategy(random_images, "a random image"),
    "typicality": LabelStrategy(typical_images, "the most typical image of a group without a label (TypiClust)"),
    "core_set": LabelStrategy(core_set_images, "the image that differs most from all labelled ones"),
    "coverage": LabelStrategy(covering_images, "the image most like many that no label covers (ProbCover)"),
    "margin": LabelStrategy(margin_images, "the image whose two likeliest classes are nearly as likely", "margin"),
    "entropy": LabelStrategy(entropy_images, "the image whose prediction is widest", "entropy"),
    "epistemic": LabelStrategy(epistemic_images, "the image on which several models disagree (BALD)", "epistemic"),
    "cluster_uncertainty": LabelStrategy(
        cluster_uncertain_images, "unsure images of different groups (Cluster-Margin)", "margin"
    ),
}
"""Name to strategy, the baseline first."""


def choose_images(
    strategy: str, pool: LabelPool, num: int = 1, seed: int = 0, cold_start: str = "typicality"
) -> np.ndarray:
    """Ask a strategy for the next images; copies of one image count as one.

    Args:
        strategy: a name of :data:`STRATEGIES`.
        pool: see :class:`LabelPool`.
        num: images to choose.
        seed: the same seed and pool give the same images.
        cold_start: the strategy that stands in for one that needs predictions before there are any.

    Returns:
        ``(num,)`` different rows in the order in which to label them; fewer if no more are left.

    Raises:
        ValueError: there is no such strategy, or ``num`` or ``seed`` is out of range.

    Example:
        >>> circle = np.array([[1, 0], [0.8, 0.6], [0, 1], [-1, 0]], dtype=np.float32)
        >>> pool = LabelPool(circle, labelled=np.array([True, False, False, False]))
        >>> choose_images("core_set", pool, num=2).tolist()
        [3, 2]
    """
    for name in (strategy, cold_start):
        if name not in STRATEGIES:
            raise ValueError(f"there is no strategy {name!r}; there are {', '.join(STRATEGIES)}")
    if STRATEGIES[cold_start].needs:
        raise ValueError(f"cold_start is {cold_start!r}, which needs predictions itself")
    if num < 1 or seed < 0:
        raise ValueError(f"num must be at least 1 and seed at least 0, got {num} and {seed}")
    small, rows = pool.distinct()
    return rows[STRATEGIES[effective_strategy(strategy, pool, cold_start)].choose(small, num, seed)]


def effective_strategy(strategy: str, pool: LabelPool, cold_start: str = "typicality") -> str:
    """Return the name of the strategy that answers: ``cold_start`` where predictions are needed and missing."""
    needs = STRATEGIES[strategy].needs
    known = needs is None or np.isfinite(pool.uncertainty.get(needs, np.nan)).any()
    return strategy if known else cold_start
