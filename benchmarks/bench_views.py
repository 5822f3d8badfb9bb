# SPDX-License-Identifier: Apache-2.0
"""Two views of each image by the policy of MoCo v2, beside lightly's and a chain of MONAI's dictionary transforms.

Everybody starts from decoded images in memory, as they like them best: ours from 16-bit grey arrays (making float32 of
them is timed), lightly from 8-bit RGB pictures of Pillow made beforehand (it takes nothing deeper), MONAI from 16-bit
grey arrays. Everybody ends with a batch of float32 views.

Ours computes in torch threads. The others work image by image in one thread, so with several threads they get as many
worker processes of a ``DataLoader``; the batches come through shared memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from monai.data import set_track_meta
from monai.data.meta_obj import get_track_meta
from monai.transforms import (
    Compose,
    NormalizeIntensityd,
    RandFlipd,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandScaleIntensityFixedMeand,
    RandSpatialCropd,
    Resized,
)
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.images import eight_bit, grey_images, grey_ramp
from benchmarks.peers import lightly
from benchmarks.rounds import Row, compare_rates, interleaved, rate_of, torch_threads
from monai_ssl.transforms import moco_v2_views

GOAL = 2.0


@dataclass(frozen=True)
class Sizes:
    """How much one round does."""

    side: int
    view: int
    batch: int
    batches: int


FULL = Sizes(side=512, view=224, batch=64, batches=4)
TINY = Sizes(side=48, view=24, batch=4, batches=2)


def run(rounds: int, threads: list[int], tiny: bool = False) -> Iterator[Row]:
    """Yield one row for each peer and number of threads."""
    sizes = TINY if tiny else FULL
    stored = grey_images(sizes.batch, sizes.side)
    depth = _depth(sizes)
    for number in threads:
        with torch_threads(number), _plain_tensors():
            contestants = {"ours": rate_of(_ours(stored, sizes))}
            for name, transform, inputs in _peers(stored, sizes):
                loader = _loader(transform, inputs, sizes, number)
                contestants[name] = rate_of(lambda loader=loader: sum(len(views[0]) for views in loader))
            figures = interleaved(contestants, rounds)
        for name in list(contestants)[1:]:
            yield compare_rates(
                figures["ours"],
                figures[name],
                unit="images/s",
                bench="two views",
                setting=f"{sizes.view} px from {sizes.side} px, batch {sizes.batch}",
                threads=number,
                peer=name,
                goal=GOAL if name == RGB else None,
                note=depth,
            )


RGB = "lightly MoCoV2Transform, 8-bit RGB as documented"
GREY = "lightly MoCoV2Transform set to 8-bit grey, no colour steps"
DICTIONARY = "MONAI dictionary transforms, metadata off"


def _ours(stored: np.ndarray, sizes: Sizes) -> Callable[[], int]:
    views, generator = moco_v2_views(sizes.view), torch.Generator().manual_seed(0)

    def work() -> int:
        done = 0
        for _ in range(sizes.batches):
            done += len(views(_as_float(stored)[:, None], generator)[0])
        return done

    return work


def _peers(stored: np.ndarray, sizes: Sizes) -> Iterator[tuple[str, Callable, list]]:
    """Name, transform of one image to its two views, and images as the peer takes them."""
    if lightly() is not None:
        rgb, grey = (list(_pictures(stored, mode)) for mode in ("RGB", "L"))
        yield RGB, lightly_views(sizes.view), rgb
        yield GREY, lightly_views(sizes.view, grey=True), grey
    yield DICTIONARY, MonaiViews(sizes.view), list(stored)


def lightly_views(size: int, grey: bool = False) -> Callable:
    """lightly's policy; with ``grey`` without the steps that change only colours, for pictures of mode L."""
    transforms = lightly("lightly.transforms")
    if not grey:
        return transforms.MoCoV2Transform(input_size=size)
    return transforms.MoCoV2Transform(
        input_size=size, cj_sat=0.0, cj_hue=0.0, random_gray_scale=0.0, normalize={"mean": [0.5], "std": [0.25]}
    )


class MonaiViews:
    """MoCo v2's policy of MONAI's own parts."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.chain: Compose | None = None

    def __call__(self, image: np.ndarray) -> list[torch.Tensor]:
        item = {"image": _as_float(image)[None]}
        if self.chain is None:
            self.chain = self._build(image.shape)
        return [self.chain(item)["image"] for _ in range(2)]  # one call gives all keys the same draw

    def _build(self, shape: tuple[int, ...]) -> Compose:
        least = [round(side * 0.2**0.5) for side in shape]
        parts = [
            RandSpatialCropd("image", roi_size=least, max_roi_size=shape, random_size=True),
            Resized("image", (self.size, self.size)),
            RandFlipd("image", prob=0.5, spatial_axis=1),
            RandScaleIntensityd("image", factors=0.4, prob=0.8),
            RandScaleIntensityFixedMeand("image", factors=0.4, prob=0.8),
            RandGaussianSmoothd("image", sigma_x=(0.1, 2.0), sigma_y=(0.1, 2.0), prob=0.5),
            NormalizeIntensityd("image", subtrahend=0.5, divisor=0.25),
        ]
        return Compose(parts)


class _Views(Dataset):
    """The views of each image, the images several times over."""

    def __init__(self, transform: Callable, images: list, repeats: int) -> None:
        self.transform, self.images, self.length = transform, images, len(images) * repeats

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> list[torch.Tensor]:
        return self.transform(self.images[i % len(self.images)])


def _loader(transform: Callable, images: list, sizes: Sizes, threads: int) -> DataLoader:
    workers = 0 if threads == 1 else threads
    return DataLoader(
        _Views(transform, images, sizes.batches),
        sizes.batch,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def _pictures(stored: np.ndarray, mode: str) -> Iterator[Image.Image]:
    for image in stored:
        yield Image.fromarray(eight_bit(image)).convert(mode)


def _depth(sizes: Sizes) -> str:
    """Say who notices a change by one of the 65,536 grey levels: the check that our views do not pass through 8 bits.

    The same two views are made of a ramp and of the ramp one level brighter.
    """
    ramp = grey_ramp(sizes.side)
    views = moco_v2_views(sizes.view)
    params = views.draw((1, 1, *ramp.shape), torch.Generator().manual_seed(0))
    ours = _share_changed(*(views.apply(_as_float(image)[None, None], params) for image in (ramp, ramp + 1)))
    if ours < 0.9:
        raise RuntimeError(f"one 16-bit grey level more changes only {ours:.0%} of our views' pixels: they lose depth")
    text = f"one 16-bit grey level more changes {ours:.0%} of our views' pixels"
    if lightly() is None:
        return text
    transform, pictures = lightly_views(sizes.view), _pictures([ramp, ramp + 1], "RGB")
    theirs = _share_changed(*(_seeded(transform, picture) for picture in pictures))
    return f"{text} and {theirs:.1%} of lightly's"


def _share_changed(before: list[torch.Tensor], after: list[torch.Tensor]) -> float:
    return torch.cat([a != b for a, b in zip(before, after, strict=True)]).float().mean().item()


def _seeded(transform: Callable, picture: Image.Image) -> list[torch.Tensor]:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (lightly's blur draws from it)
    return transform(picture)


def _as_float(image: np.ndarray) -> torch.Tensor:
    """What our store gives: float32 in [0, 1]."""
    return torch.from_numpy(np.divide(image, np.float32(65535), dtype=np.float32))


@contextmanager
def _plain_tensors() -> Iterator[None]:
    """MONAI without metadata, which is faster."""
    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)
