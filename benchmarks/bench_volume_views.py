# SPDX-License-Identifier: Apache-2.0
"""Two views of each volume, beside a chain of MONAI's dictionary transforms of the same operations.

Both start from float32 volumes in memory and end with a batch of float32 views. Both draw from the same ranges with the
same probabilities, and turn within slices or about any axis alike. What is not the same: MONAI cuts its view out of
the crop, turned and scaled, where ours brings the whole crop to the view's size, without aliasing; and for low
resolution it picks the nearest voxels, where ours averages.

Ours computes in torch threads. MONAI works volume by volume in one thread, so with several threads it gets as many
worker processes of a ``DataLoader``; the batches come through shared memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from monai.transforms import (
    Compose,
    NormalizeIntensityd,
    Rand3DElasticd,
    RandAdjustContrastd,
    RandAffined,
    RandBiasFieldd,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandomizableTransform,
    RandScaleIntensityd,
    RandScaleIntensityFixedMeand,
    RandSimulateLowResolutiond,
    RandSpatialCropd,
)

from benchmarks.bench_views import _loader, _plain_tensors
from benchmarks.rounds import Row, compare_rates, interleaved, rate_of, torch_threads
from monai_ssl.transforms import MultiView, volume_views

GOAL = 3.0
MIN_SCALE, ROTATION_DEG, JITTER, GAMMA, SIGMA, NOISE = 0.3, 15.0, 0.3, (0.7, 1.5), (0.5, 1.0), 0.05


@dataclass(frozen=True)
class Sizes:
    """How much one round does."""

    side: int
    view: int
    batch: int
    batches: int


@dataclass(frozen=True)
class Setting:
    """What is compared.

    Attributes:
        name: for the table.
        in_plane: turn within slices.
        every: every step on every sample; else the probabilities of ``volume_views``.
        elastic: an elastic deformation too.
        goal: least ratio wanted.
    """

    name: str
    in_plane: bool = True
    every: bool = False
    elastic: bool = False
    goal: float | None = GOAL

    def prob(self, usual: float) -> float:
        """Probability of a step."""
        return 1.0 if self.every else usual


FULL = Sizes(side=128, view=96, batch=2, batches=1)
TINY = Sizes(side=20, view=16, batch=2, batches=1)
SETTINGS = (
    Setting("as volume_views draws"),
    Setting("turned about any axis", in_plane=False),
    Setting("about any axis, every step on every sample", in_plane=False, every=True),
    Setting("about any axis, and elastic", in_plane=False, elastic=True, goal=None),
)
PEER = "MONAI dictionary transforms, metadata off"


def run(rounds: int, threads: list[int], tiny: bool = False) -> Iterator[Row]:
    """Yield one row for each setting and number of threads."""
    sizes = TINY if tiny else FULL
    volumes = torch.rand(sizes.batch, 1, *[sizes.side] * 3, generator=torch.Generator().manual_seed(0))
    for number in threads:
        for setting in SETTINGS:
            with torch_threads(number), _plain_tensors():
                loader = _loader(MonaiVolumeViews(sizes, setting), list(volumes), sizes, number)
                contestants = {
                    "ours": rate_of(_ours(volumes, sizes, setting)),
                    PEER: rate_of(lambda loader=loader: sum(len(views[0]) for views in loader)),
                }
                figures = interleaved(contestants, rounds)
            yield compare_rates(
                figures["ours"],
                figures[PEER],
                unit="volumes/s",
                bench="two volume views",
                setting=f"{sizes.view}^3 from {sizes.side}^3, batch {sizes.batch}, {setting.name}",
                threads=number,
                peer=PEER,
                goal=setting.goal,
            )


def our_views(size: int, setting: Setting) -> MultiView:
    """The policy, with the steps of both modalities that MONAI has."""
    return volume_views(
        size,
        "MR",
        min_scale=MIN_SCALE,
        rotation_deg=ROTATION_DEG,
        in_plane=setting.in_plane,
        elastic=0.3 if setting.elastic else 0.0,
        jitter=JITTER,
        jitter_prob=setting.prob(0.8),
        gamma=GAMMA,
        gamma_prob=setting.prob(0.5),
        bias_prob=setting.prob(0.5),
        blur_sigma=SIGMA,
        blur_prob=setting.prob(0.3),
        low_resolution_prob=setting.prob(0.25),
        noise_std=NOISE,
        noise_prob=setting.prob(0.3),
    )


def _ours(volumes: torch.Tensor, sizes: Sizes, setting: Setting) -> Callable[[], int]:
    views, generator = our_views(sizes.view, setting), torch.Generator().manual_seed(0)

    def work() -> int:
        return sum(len(views(volumes, generator)[0]) for _ in range(sizes.batches))

    return work


class MonaiVolumeViews:
    """The same of MONAI's own parts."""

    def __init__(self, sizes: Sizes, setting: Setting) -> None:
        self.chain = Compose(list(_parts(sizes, setting)))

    def __call__(self, volume: torch.Tensor) -> list[torch.Tensor]:
        return [self.chain({"image": volume})["image"] for _ in range(2)]  # one call gives all keys the same draw


def _parts(sizes: Sizes, setting: Setting) -> Iterator[RandomizableTransform]:
    prob, key = setting.prob, "image"
    turn = math.radians(ROTATION_DEG)
    rotate = (turn, 0.0, 0.0) if setting.in_plane else (turn,) * 3
    least = [round(sizes.side * MIN_SCALE ** (1 / 3))] * 3
    yield RandSpatialCropd(key, roi_size=least, max_roi_size=[sizes.side] * 3, random_size=True)
    place = {"rotate_range": rotate, "scale_range": (0.2,) * 3, "spatial_size": (sizes.view,) * 3, "prob": 1.0}
    if setting.elastic:
        yield Rand3DElasticd(key, sigma_range=(5, 7), magnitude_range=(50, 150), padding_mode="border", **place)
    else:
        yield RandAffined(key, padding_mode="border", **place)
    yield RandFlipd(key, prob=0.5, spatial_axis=2)
    yield RandBiasFieldd(key, degree=3, coeff_range=(0.0, 0.1), prob=prob(0.5))
    yield RandAdjustContrastd(key, gamma=GAMMA, prob=prob(0.5))
    yield RandScaleIntensityd(key, factors=JITTER, prob=prob(0.8))
    yield RandScaleIntensityFixedMeand(key, factors=JITTER, prob=prob(0.8))
    yield RandGaussianSmoothd(key, sigma_x=SIGMA, sigma_y=SIGMA, sigma_z=SIGMA, prob=prob(0.3))
    yield RandSimulateLowResolutiond(key, zoom_range=(0.5, 1.0), prob=prob(0.25))
    yield RandGaussianNoised(key, std=NOISE, prob=prob(0.3))
    yield NormalizeIntensityd(key, subtrahend=0.5, divisor=0.25)
