# SPDX-License-Identifier: Apache-2.0
"""Two large and six small views of each image, beside lightly's transforms for SwAV and for DINO.

Everybody starts from decoded images in memory, as they like them best: ours from 16-bit grey arrays (making float32 of
them is timed), lightly from 8-bit RGB pictures of Pillow made beforehand. Everybody ends with a batch of float32 views.
Ours computes in torch threads; lightly gets as many worker processes. Without lightly, ours is compared with itself on
the large views alone: what the small ones cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from benchmarks.bench_views import as_float, pictures, view_loader
from benchmarks.images import grey_images
from benchmarks.peers import lightly
from benchmarks.rounds import Row, compare_rates, interleaved, rate_of, torch_threads
from monai_ssl.transforms import MultiView, multi_crop_views

GOAL = 3.0
NUM_SMALL = 6
LARGE_ALONE = "ours, the two large views alone"

# (side of the images, of the large views, of the small views, batch, batches a round)
FULL = (512, 224, 96, 64, 3)
TINY = (48, 24, 12, 4, 2)


def run(rounds: int, threads: list[int], tiny: bool = False) -> Iterator[Row]:
    """Yield one row for each peer and number of threads."""
    side, large, small, batch, batches = TINY if tiny else FULL
    stored = grey_images(batch, side)
    for number in threads:
        with torch_threads(number):
            contestants = {"ours": _ours(multi_crop_views(large, small, NUM_SMALL), stored, batches)}
            goals = {LARGE_ALONE: None}
            contestants[LARGE_ALONE] = _ours(multi_crop_views(large, small, 0), stored, batches)
            for name, transform, mode, goal in _peers(large, small):
                loader = view_loader(transform, list(pictures(stored, mode)), batch, batches, number)
                contestants[name] = rate_of(lambda loader=loader: sum(len(views[0]) for views in loader))
                goals[name] = goal
            figures = interleaved(contestants, rounds)
        for name, goal in goals.items():
            yield compare_rates(
                figures["ours"],
                figures[name],
                unit="images/s",
                bench="multi-crop",
                setting=f"2 x {large} and {NUM_SMALL} x {small} px from {side} px, batch {batch}",
                threads=number,
                peer=name,
                goal=goal,
            )


def _ours(views: MultiView, stored: np.ndarray, batches: int) -> Callable[[], float]:
    generator = torch.Generator().manual_seed(0)
    return rate_of(lambda: sum(len(views(as_float(stored)[:, None], generator)[0]) for _ in range(batches)))


def _peers(large: int, small: int) -> Iterator[tuple[str, Callable, str, float | None]]:
    """Name, transform of a picture to its views, the pictures' mode, and the goal."""
    if lightly() is None:
        return
    transforms = lightly("lightly.transforms")
    swav = {"crop_sizes": (large, small), "crop_counts": (2, NUM_SMALL)}
    grey = {
        "cj_sat": 0.0,
        "cj_hue": 0.0,
        "random_gray_scale": 0.0,
        "normalize": {"mean": [0.5], "std": [0.25]},
    }
    dino = {"global_crop_size": large, "local_crop_size": small, "n_local_views": NUM_SMALL}
    yield "lightly SwaVTransform, 8-bit RGB as documented", transforms.SwaVTransform(**swav), "RGB", GOAL
    yield "lightly DINOTransform, 8-bit RGB as documented", transforms.DINOTransform(**dino), "RGB", GOAL
    yield (
        "lightly SwaVTransform set to 8-bit grey, no colour steps",
        transforms.SwaVTransform(**swav, **grey),
        "L",
        None,
    )
