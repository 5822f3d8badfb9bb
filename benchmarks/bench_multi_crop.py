# SPDX-License-Identifier: Apache-2.0
"""Two large and six small views of each image, beside lightly's transforms for SwAV and for DINO.

Everybody starts from decoded images in memory, as they like them best: ours from 16-bit grey arrays (making float32 of
them is timed), lightly from 8-bit RGB pictures of Pillow made beforehand. Everybody ends with a batch of float32 views.
Ours computes in torch threads; lightly gets as many worker processes. Without lightly, ours is compared with itself on
the large views alone: what the small ones cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.bench_views import _as_float, _loader, _pictures
from benchmarks.images import grey_images
from benchmarks.peers import lightly
from benchmarks.rounds import Row, compare_rates, interleaved, rate_of, torch_threads
from monai_ssl.transforms import multi_crop_views

GOAL = 3.0
NUM_SMALL = 6
LARGE_ALONE = "ours, the two large views alone"


@dataclass(frozen=True)
class Sizes:
    """How much one round does."""

    side: int
    large: int
    small: int
    batch: int
    batches: int


FULL = Sizes(side=512, large=224, small=96, batch=64, batches=3)
TINY = Sizes(side=48, large=24, small=12, batch=4, batches=2)


def run(rounds: int, threads: list[int], tiny: bool = False) -> Iterator[Row]:
    """Yield one row for each peer and number of threads."""
    sizes = TINY if tiny else FULL
    stored = grey_images(sizes.batch, sizes.side)
    for number in threads:
        with torch_threads(number):
            contestants = {"ours": _ours(stored, sizes), LARGE_ALONE: _ours(stored, sizes, num_small=0)}
            goals: dict[str, float | None] = {LARGE_ALONE: None}
            for name, transform, mode, goal in _peers(sizes):
                loader = _loader(transform, list(_pictures(stored, mode)), sizes, number)
                contestants[name] = rate_of(lambda loader=loader: sum(len(views[0]) for views in loader))
                goals[name] = goal
            figures = interleaved(contestants, rounds)
        for name, goal in goals.items():
            yield compare_rates(
                figures["ours"],
                figures[name],
                unit="images/s",
                bench="multi-crop",
                setting=f"2x{sizes.large} and {NUM_SMALL}x{sizes.small} px from {sizes.side} px, batch {sizes.batch}",
                threads=number,
                peer=name,
                goal=goal,
            )


def _ours(stored: np.ndarray, sizes: Sizes, num_small: int = NUM_SMALL) -> Callable[[], float]:
    views, generator = multi_crop_views(sizes.large, sizes.small, num_small), torch.Generator().manual_seed(0)
    return rate_of(lambda: sum(len(views(_as_float(stored)[:, None], generator)[0]) for _ in range(sizes.batches)))


def _peers(sizes: Sizes) -> Iterator[tuple[str, Callable, str, float | None]]:
    """Name, transform of a picture to its views, the pictures' mode, and the goal."""
    if lightly() is None:
        return
    transforms = lightly("lightly.transforms")
    swav = {"crop_sizes": (sizes.large, sizes.small), "crop_counts": (2, NUM_SMALL)}
    dino = {"global_crop_size": sizes.large, "local_crop_size": sizes.small, "n_local_views": NUM_SMALL}
    grey = {"cj_sat": 0.0, "cj_hue": 0.0, "random_gray_scale": 0.0, "normalize": {"mean": [0.5], "std": [0.25]}}
    yield "lightly SwaVTransform, 8-bit RGB as documented", transforms.SwaVTransform(**swav), "RGB", GOAL
    yield "lightly DINOTransform, 8-bit RGB as documented", transforms.DINOTransform(**dino), "RGB", GOAL
    yield "lightly SwaVTransform set to 8-bit grey, no colour steps", transforms.SwaVTransform(**swav | grey), "L", None
