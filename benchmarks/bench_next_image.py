# SPDX-License-Identifier: Apache-2.0
"""How long an annotator waits for the next image among 10,000 embedded ones, by strategy; the goal is 200 ms.

Ours asks a strategy as the labelling app does: its plan of 50 images is made in the background, after each training
and before it comes to its end, and the answer is the first image of the plan that is still open. Beside it, the
strategy asked for one image without any plan.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.rounds import Row, compare_times, torch_threads
from monai_ssl.label import STRATEGIES, LabelPool, NextImages, choose_images

GOAL_MS = 200.0


@dataclass(frozen=True)
class Sizes:
    """How much there is to choose from."""

    images: int
    features: int
    labelled: int
    answers: int


FULL = Sizes(images=10_000, features=512, labelled=200, answers=40)
TINY = Sizes(images=300, features=16, labelled=10, answers=3)


def run(rounds: int, threads: list[int], tiny: bool = False) -> Iterator[Row]:
    """Yield one row for each strategy and number of threads."""
    sizes = TINY if tiny else FULL
    for number in threads:
        with torch_threads(number):
            for name in STRATEGIES:
                yield _row(name, sizes, rounds, number)


def _row(name: str, sizes: Sizes, rounds: int, threads: int) -> Row:
    planned, anew = [], []
    for number in range(rounds):
        pool = _pool(sizes, number)
        next_images = NextImages(pool, seed=number)
        next_images.extend(name)
        taken: list[int] = []
        start = time.perf_counter()
        for _ in range(sizes.answers):
            taken.append(next_images.answer(name, taken))
        planned.append((time.perf_counter() - start) * 1e3 / sizes.answers)
        start = time.perf_counter()
        choose_images(name, pool, 1, seed=number)
        anew.append((time.perf_counter() - start) * 1e3)
    slowest = max(planned)
    return compare_times(
        planned,
        anew,
        bench="next image",
        setting=f"{name}, {sizes.images} images of {sizes.features} features, {sizes.labelled} labelled",
        threads=threads,
        peer="the same without a plan",
        note=f"an answer takes {slowest:.2g} ms at most; wanted are {GOAL_MS:.0f}: "
        + ("reached" if slowest < GOAL_MS else "MISSED"),
    )


def _pool(sizes: Sizes, seed: int) -> LabelPool:
    """Clustered embeddings, some labelled, with predictions."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(30, sizes.features))
    features = centres[rng.integers(30, size=sizes.images)] + rng.normal(size=(sizes.images, sizes.features))
    labelled = np.zeros(sizes.images, dtype=bool)
    labelled[rng.permutation(sizes.images)[: sizes.labelled]] = True
    scores = {kind: rng.random(sizes.images) for kind in ("margin", "entropy", "epistemic")}
    return LabelPool.of_features(features, labelled, uncertainty=scores, num_classes=5)
