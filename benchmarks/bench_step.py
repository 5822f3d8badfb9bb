# SPDX-License-Identifier: Apache-2.0
"""Whole training steps of SimCLR with ResNet-18, from files on disk to updated weights, beside lightly's README loop.

Both sides do the same mathematics: the same policy of views, two passes of the network, a two-layer head with
BatchNorm, NT-Xent at temperature 0.5, SGD. Everything happens in this process, on the same threads.

* ours: a store of 16-bit grey images, views on the whole batch, one input channel, :class:`PretrainTrainer` at its
  defaults, which measures precision and memory format before the first step.
* lightly as documented: its README's loop, with the views' size changed to ours; 8-bit grey PNG files, which its
  dataset turns into RGB; fp32.
* lightly at equal precision: the same with bf16 autocast and channels_last.
* lightly tuned in everything: also grey instead of RGB (views and network), and one loader worker beside the loop.
* our twin: the same trainer fed with the same constant views: what reading and views cost is the difference.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import normalize
from torch.utils.data import DataLoader

from benchmarks.bench_loader import store_of
from benchmarks.images import grey_images, write_folders
from benchmarks.peers import lightly
from benchmarks.rounds import Row, compare_rates, interleaved, rate_of, torch_threads
from monai_ssl.data import EpochSampler, ImageStore, PadCollate, StoreDataset
from monai_ssl.engines import PretrainTrainer
from monai_ssl.losses import nt_xent
from monai_ssl.methods import SSLMethod
from monai_ssl.networks import build_encoder
from monai_ssl.transforms import (
    IntensityStandardize,
    MultiView,
    RandomBrightnessContrast,
    RandomGaussianBlur,
    RandomResample,
    ViewChain,
)

TEMPERATURE, LEARNING_RATE, WEIGHT_DECAY = 0.5, 0.1, 1e-6  # of lightly's README
DOCUMENTED = "lightly's README loop as documented"
EQUAL = "lightly's README loop with bf16 and channels_last"
TUNED = "lightly's loop with bf16, channels_last, grey, 1 channel, 1 worker"
TWIN = "our own twin on constant views"
GOALS = {DOCUMENTED: 3.0, EQUAL: 1.1, TUNED: None, TWIN: 1 / 1.1}


@dataclass(frozen=True)
class Sizes:
    """How much one round does: ``steps`` steps, an epoch."""

    side: int
    view: int
    batch: int
    steps: int


FULL = Sizes(side=512, view=224, batch=32, steps=4)
TINY = Sizes(side=64, view=32, batch=4, steps=2)


def run(rounds: int, threads: list[int], tiny: bool = False) -> Iterator[Row]:
    """Yield one row for each peer, and one for our twin."""
    sizes, number = TINY if tiny else FULL, max(threads)
    with tempfile.TemporaryDirectory() as folder, torch_threads(number):
        deep, shallow = write_folders(grey_images(sizes.batch * sizes.steps, sizes.side), Path(folder))
        ours = Ours(store_of(deep, Path(folder) / "store"), sizes)
        ours.epoch()  # settles precision and memory format, which the twin takes over
        twin = Ours(ours.store, sizes, twin_of=ours.trainer)
        loops = {"ours": ours.epoch, TWIN: twin.epoch}
        if lightly() is not None:
            loops[DOCUMENTED] = ReadmeLoop(shallow, sizes).epoch
            loops[EQUAL] = ReadmeLoop(shallow, sizes, fast=True).epoch
            loops[TUNED] = ReadmeLoop(shallow, sizes, fast=True, grey=True, workers=1).epoch
        figures = interleaved({name: rate_of(epoch) for name, epoch in loops.items()}, rounds)
        for name in GOALS:
            if name in loops:
                yield compare_rates(
                    figures["ours"],
                    figures[name],
                    unit="pairs/s",
                    bench="SimCLR step",
                    setting=f"ResNet-18, {sizes.view} px, batch {sizes.batch}, from {sizes.side} px",
                    threads=number,
                    peer=name,
                    goal=GOALS[name],
                    note=f"ours chose {ours.choice}",
                )


def simclr_views(size: int) -> MultiView:
    """SimCLR's policy as lightly has it, as far as it acts on grey images."""
    chain = ViewChain(
        [
            RandomResample(size, (0.08, 1.0), flip_prob=0.5),
            RandomBrightnessContrast(0.8, 0.8, prob=0.8),
            RandomGaussianBlur((0.1, 2.0), prob=0.5),
            IntensityStandardize(),
        ]
    )
    return MultiView([chain, chain])


class SimCLR(SSLMethod):
    """lightly's SimCLR on our encoder: the same head and the same loss."""

    def __init__(self) -> None:
        super().__init__(build_encoder("resnet18"))
        features = self.encoder.num_features
        self.head = nn.Sequential(
            nn.Linear(features, 512, bias=False),
            nn.BatchNorm1d(512),
            nn.ReLU(),
            nn.Linear(512, 128, bias=False),
            nn.BatchNorm1d(128),
        )

    def forward(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """See :meth:`SSLMethod.forward`."""
        first, second = (self.head(self.encoder(view)) for view in batch["views"])
        return {"loss": nt_xent(first, second, TEMPERATURE), "embedding": normalize(first.detach().float(), dim=1)}


class Ours:
    """Our trainer, an epoch at a time; a twin computes as ``twin_of`` does, on a batch and views made beforehand."""

    def __init__(self, store: ImageStore, sizes: Sizes, twin_of: PretrainTrainer | None = None) -> None:
        torch.manual_seed(0)
        self.store, self.sizes = store, sizes
        dataset = StoreDataset(store)
        loader: Any = DataLoader(dataset, sizes.batch, sampler=EpochSampler(len(dataset)), collate_fn=PadCollate())
        views: Callable = simclr_views(sizes.view)
        options = {}
        if twin_of is not None:
            options = {"precision": twin_of.precision, "channels_last": twin_of.channels_last}
            batch = next(iter(loader))
            fixed = views(batch["image"], torch.Generator().manual_seed(0))
            loader, views = [batch] * sizes.steps, lambda image, generator, extent: list(fixed)
        method = SimCLR()
        optimizer = torch.optim.SGD(method.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        self.trainer = PretrainTrainer("cpu", 0, loader, method, optimizer, views, **options)

    def epoch(self) -> int:
        """Train one more epoch; return the pairs of views."""
        self.trainer.state.max_epochs += 1
        self.trainer.run()
        return self.sizes.batch * self.sizes.steps

    @property
    def choice(self) -> str:
        """Precision and memory format."""
        return f"{self.trainer.precision}, channels {'last' if self.trainer.channels_last else 'first'}"


class ReadmeLoop:
    """lightly's README ("Quick Start"), an epoch at a time.

    Args:
        images: folder of 8-bit PNG files.
        sizes: how much.
        fast: bf16 autocast and channels_last.
        grey: grey views and a network with one input channel.
        workers: of the loader; the README has none.
    """

    def __init__(self, images: Path, sizes: Sizes, fast: bool = False, grey: bool = False, workers: int = 0) -> None:
        torch.manual_seed(0)
        self.sizes, self.fast = sizes, fast
        dataset = lightly("lightly.data").LightlyDataset(input_dir=str(images), transform=_transform(sizes.view, grey))
        self.loader = DataLoader(
            dataset, sizes.batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0
        )
        self.model = _network(channels=1 if grey else 3)
        if fast:
            self.model.to(memory_format=torch.channels_last)
        self.criterion = lightly("lightly.loss").NTXentLoss(temperature=TEMPERATURE)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def epoch(self) -> int:
        """Train one more epoch; return the pairs of views."""
        for views, _, _ in self.loader:
            if self.fast:
                views = [view.contiguous(memory_format=torch.channels_last) for view in views]
            with torch.autocast("cpu", torch.bfloat16, enabled=self.fast):
                first, second = (self.model(view) for view in views)
            loss = self.criterion(first.float(), second.float())
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            loss.item()  # the README prints it
        return self.sizes.batch * self.sizes.steps


def _transform(size: int, grey: bool) -> Callable:
    transforms = lightly("lightly.transforms")
    if not grey:
        return transforms.SimCLRTransform(input_size=size)
    views = transforms.SimCLRTransform(
        input_size=size, cj_sat=0.0, cj_hue=0.0, random_gray_scale=0.0, normalize={"mean": [0.5], "std": [0.25]}
    )
    return _OfGrey(views)


class _OfGrey:
    """Views of the grey picture that was in the file, before the dataset made it RGB."""

    def __init__(self, views: Callable) -> None:
        self.views = views

    def __call__(self, picture) -> list[torch.Tensor]:
        return self.views(picture.getchannel(0))


def _network(channels: int) -> nn.Module:
    heads = lightly("lightly.models.modules.heads")
    from torchvision.models import resnet18  # importable only now, see benchmarks/peers.py

    backbone = resnet18()
    backbone.fc = nn.Identity()
    if channels != 3:
        backbone.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    head = heads.SimCLRProjectionHead(input_dim=512, hidden_dim=512, output_dim=128)
    return nn.Sequential(backbone, nn.Flatten(), head)
