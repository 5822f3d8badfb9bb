# SPDX-License-Identifier: Apache-2.0
"""Batches of whole images from files (in the page cache), without views: our store beside PNG files read by others.

lightly's dataset gets 8-bit grey PNG, the smallest its files may be (it makes RGB of them); MONAI gets 16-bit grey PNG.
Everybody goes through a ``DataLoader``: in this process with one thread, else with as many workers as threads.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.data import Dataset as MonaiDataset
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, ScaleIntensityRanged
from torch.utils.data import DataLoader, Dataset

from benchmarks.images import grey_images, write_folders
from benchmarks.peers import lightly
from benchmarks.rounds import Row, compare_rates, interleaved, rate_of, torch_threads
from monai_ssl.data import ImageStore, PadCollate, StoreDataset, build_index, prepare_store


@dataclass(frozen=True)
class Sizes:
    """How much one round does: it reads each image once."""

    images: int
    side: int
    batch: int


FULL = Sizes(images=128, side=512, batch=32)
TINY = Sizes(images=4, side=32, batch=2)


def run(rounds: int, threads: list[int], tiny: bool = False) -> Iterator[Row]:
    """Yield one row for each peer and number of threads."""
    sizes = TINY if tiny else FULL
    with tempfile.TemporaryDirectory() as folder:
        deep, shallow = write_folders(grey_images(sizes.images, sizes.side), Path(folder))
        store = store_of(deep, Path(folder) / "store")
        for number in threads:
            contestants = {"ours": _reading(StoreDataset(store), sizes, number, PadCollate())}
            for name, dataset in _peers(deep, shallow):
                contestants[name] = _reading(dataset, sizes, number)
            with torch_threads(number):
                figures = interleaved(contestants, rounds)
            for name in list(contestants)[1:]:
                yield compare_rates(
                    figures["ours"],
                    figures[name],
                    unit="images/s",
                    bench="reading",
                    setting=f"{sizes.images} images of {sizes.side} px, batch {sizes.batch}",
                    threads=number,
                    peer=name,
                    note="no views; files in the page cache; our store holds 16 bits, uncached",
                )


def store_of(images: Path, folder: Path) -> ImageStore:
    """Index and prepare a folder of images, in this process."""
    table = build_index(images, num_workers=0, progress=False)
    return prepare_store(table, images, folder, num_workers=0, progress=False)


def _peers(deep: Path, shallow: Path) -> Iterator[tuple[str, Dataset]]:
    data = lightly("lightly.data")
    if data is not None:
        yield "lightly LightlyDataset, 8-bit PNG", data.LightlyDataset(input_dir=str(shallow), transform=_to_tensor)
    chain = Compose(
        [
            LoadImaged("image", reader="PILReader"),
            EnsureChannelFirstd("image"),
            ScaleIntensityRanged("image", a_min=0, a_max=65535, b_min=0, b_max=1),
        ]
    )
    files = [{"image": str(path)} for path in sorted(deep.iterdir())]
    yield "MONAI LoadImaged, 16-bit PNG", MonaiDataset(files, chain)


def _to_tensor(picture) -> torch.Tensor:
    """RGB picture to (3, rows, columns) float32 in [0, 1]."""
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255).permute(2, 0, 1)


def _reading(dataset: Dataset, sizes: Sizes, threads: int, collate: Callable | None = None) -> Callable[[], float]:
    workers = 0 if threads == 1 else threads
    loader = DataLoader(dataset, sizes.batch, num_workers=workers, persistent_workers=workers > 0, collate_fn=collate)

    def read_all() -> int:
        for _ in loader:
            pass
        return len(dataset)

    return rate_of(read_all)
