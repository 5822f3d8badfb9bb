# SPDX-License-Identifier: Apache-2.0
"""What reading costs a pretraining on volumes: our trainer on patches from a store, beside a twin without a loader.

Masked autoencoding with SegResNet as the bundle for volumes has it. The store keeps CT volumes of 16-bit integers as
they were acquired; nothing is cached, and the patches are read in the trainer's own process, so that every read is
waited for. The twin draws the views of one constant batch and computes alike.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from benchmarks.bench_patches import Sizes as VolumeSizes
from benchmarks.bench_patches import store_of, write_volumes
from benchmarks.bench_volume_step import CNN, masked_cnn, trainer_of
from benchmarks.rounds import Row, Spread, compare_rates, interleaved, rate_of, torch_threads
from monai_ssl.data import ImageStore, PadCollate, PatchSampler, VolumePatchDataset
from monai_ssl.engines import PretrainTrainer
from monai_ssl.handlers import Throughput
from monai_ssl.transforms import masked_views

MOST_WAITING = 0.1


@dataclass(frozen=True)
class Sizes:
    """How much the trainer reads in a round, an epoch."""

    volumes: VolumeSizes
    view: int
    read: int
    block: int
    batch: int
    steps: int


_VOLUMES = VolumeSizes(volumes=3, shape=(160, 320, 320), spacing_mm=(2.0, 0.8, 0.8), patch=96, our_epochs=1)
_FEW = VolumeSizes(volumes=2, shape=(24, 32, 32), spacing_mm=(2.0, 1.6, 1.6), patch=24, our_epochs=1)
FULL = Sizes(_VOLUMES, view=64, read=96, block=16, batch=4, steps=6)
TINY = Sizes(_FEW, view=16, read=24, block=8, batch=2, steps=2)


def run(rounds: int, threads: list[int], tiny: bool = False) -> Iterator[Row]:
    """Yield one row."""
    with torch_threads(max(threads)):
        yield _row(TINY if tiny else FULL, rounds)


def _row(sizes: Sizes, rounds: int) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "volumes"
        write_volumes(root, sizes.volumes)
        reading = Reading(store_of(root, Path(folder) / "store", None, 0), sizes)
        reading.epoch()  # settles precision and memory format, which the twin takes over
        twin = Reading(reading.store, sizes, twin_of=reading.trainer)
        reading.waiting.clear()
        figures = interleaved({"ours": rate_of(reading.epoch), "twin": rate_of(twin.epoch)}, rounds)
    share = Spread.of(reading.waiting[1:])  # without the round that warms up
    verdict = "reached" if share.median <= MOST_WAITING else "MISSED"
    waited = f"{share.median:.1%} ({share.min:.1%} to {share.max:.1%}) of the step, goal {MOST_WAITING:.0%}: {verdict}"
    depth, height, width = sizes.volumes.shape
    return compare_rates(
        figures["ours"],
        figures["twin"],
        unit="patches/s",
        bench="masked autoencoding from a store",
        setting=f"{CNN}, {sizes.view}^3 from {sizes.read}^3 of {width} x {height} x {depth}, batch {sizes.batch}",
        threads=torch.get_num_threads(),
        peer="our own twin on a constant batch",
        goal=1 - MOST_WAITING,
        note=f"waited for the loader {waited}; computed in {reading.trainer.precision}",
    )


class Reading:
    """Our trainer on a store as the bundle has it, an epoch at a time; a twin gets one batch again and again."""

    def __init__(self, store: ImageStore, sizes: Sizes, twin_of: PretrainTrainer | None = None) -> None:
        torch.manual_seed(0)
        self.store, self.sizes = store, sizes
        data = VolumePatchDataset(store, read_size=sizes.read, foreground_prob=0.5, valid_above=0.02, cache="none")
        sampler = PatchSampler(len(data), sizes.batch * sizes.steps)
        loader: Any = DataLoader(data, sizes.batch, sampler=sampler, collate_fn=PadCollate())
        options = {}
        if twin_of is not None:
            options = {"precision": twin_of.precision, "channels_last": twin_of.channels_last}
            loader = [next(iter(loader))] * sizes.steps
        method = masked_cnn(sizes.block)
        handlers = [Throughput()]
        self.trainer = trainer_of(method, loader, masked_views(sizes.view), train_handlers=handlers, **options)
        self.waiting: list[float] = []

    def epoch(self) -> int:
        """Train one more epoch; return the patches."""
        self.trainer.state.max_epochs += 1
        self.trainer.run()
        self.waiting.append(self.trainer.state.metrics["loader_fraction"])
        return self.sizes.batch * self.sizes.steps
