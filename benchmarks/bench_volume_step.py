# SPDX-License-Identifier: Apache-2.0
"""Steps of masked autoencoding on volumes, beside the step of MONAI's tutorial on self-supervised pretraining.

Everybody gets the same number of crops in memory, of 64 voxels a side, on the same threads:

* the tutorial (Project-MONAI/tutorials, self_supervised_pretraining/vit_unetr_ssl): ``ViTAutoEnc`` rebuilds two
  corrupted views of each crop; L1 loss times one plus ``ContrastiveLoss`` at temperature 0.05 on the flattened
  reconstructions; Adam; fp32. It takes 2 crops of 96 voxels a side from each of 4 volumes, here 2 of 64 from each of
  2. The views are corrupted beforehand, which is not counted.
* ours: :class:`PretrainTrainer` with AdamW (as heavy as Adam), masks drawn in the step. ``MaskedAutoencoderCNN`` on
  SegResNet as the bundle for volumes has it, a smaller network than the tutorial's; and ``MAEViT`` on a ViT of the
  tutorial's size with the paper's decoder, a larger one. Each in fp32, and as the trainer chooses.

Memory is the peak of two steps in a process of their own, weights, gradients and the optimiser's moments included, less
what was resident before the network was made; see :mod:`benchmarks.memory`. What our default takes once, while it
measures precisions on a copy of the network, is not in it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from monai.losses import ContrastiveLoss
from monai.networks.nets import ViTAutoEnc
from monai.transforms import RandCoarseDropout
from torch import Tensor, nn

from benchmarks.memory import peak_mib
from benchmarks.rounds import Row, compare_times, interleaved, torch_threads
from monai_ssl.engines import PretrainTrainer, build_optimizer
from monai_ssl.methods import MAEViT, MaskedAutoencoderCNN, SSLMethod
from monai_ssl.networks import build_encoder

TUTORIAL = "MONAI's tutorial step"
CNN, VIT = "SegResNet", "ViT"
VOLUMES, CROPS_EACH = 2, 2  # 4 and 2 in the tutorial, where a step takes more than 10 GB
GOAL = 2.0  # times as fast, and as little memory
_HOW = {"fp32": {"precision": "fp32", "channels_last": False}, "our default": None}


@dataclass(frozen=True)
class Sizes:
    """How large the step is; the widths are of the tutorial's ViT."""

    side: int
    patch: int
    hidden: int
    mlp: int
    layers: int
    heads: int
    crops: int = 0
    decoder: tuple[int, int, int] = (512, 8, 16)


FULL = Sizes(side=64, patch=16, hidden=768, mlp=3072, layers=12, heads=12)
TINY = Sizes(side=16, patch=4, hidden=24, mlp=48, layers=2, heads=2, decoder=(24, 1, 2))


def run(rounds: int, threads: list[int], tiny: bool = False) -> Iterator[Row]:
    """Yield rows for time and memory of each network and precision."""
    with torch_threads(max(threads)):
        yield from _rows(replace(TINY if tiny else FULL, crops=VOLUMES * CROPS_EACH), rounds)


class Tutorial:
    """The tutorial's step."""

    def __init__(self, sizes: Sizes) -> None:
        torch.manual_seed(0)
        patch = (sizes.patch,) * 3
        shape = {"img_size": (sizes.side,) * 3, "patch_size": patch, "hidden_size": sizes.hidden, "mlp_dim": sizes.mlp}
        self.network = ViTAutoEnc(in_channels=1, num_layers=sizes.layers, num_heads=sizes.heads, **shape)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-4)
        self.l1, self.contrast = nn.L1Loss(), ContrastiveLoss(temperature=0.05)
        self.image = crops_of(sizes)
        corrupt = RandCoarseDropout(holes=6, spatial_size=sizes.side // 8, max_spatial_size=sizes.side // 3, prob=1)
        corrupt.set_random_state(0)
        self.views = [torch.stack([corrupt(crop) for crop in self.image]) for _ in range(2)]

    def step(self) -> None:
        """Make one step of the optimiser."""
        self.optimizer.zero_grad()
        first, second = (self.network(view)[0] for view in self.views)
        rebuilt, contrast = self.l1(first, self.image), self.contrast(first.flatten(1), second.flatten(1))
        loss = rebuilt + contrast * rebuilt
        loss.backward()
        self.optimizer.step()
        loss.item(), contrast.item(), rebuilt.item()

    @property
    def again(self) -> type[Tutorial]:
        """Makes another of any size."""
        return Tutorial


class Ours:
    """Our trainer's step with one of the two networks; ``options`` are precision and memory format, if not measured."""

    def __init__(self, network: str, sizes: Sizes, options: dict[str, Any] | None = None) -> None:
        torch.manual_seed(0)
        self.name = network
        method = masked_cnn(sizes.patch) if network == CNN else masked_vit(sizes)
        batch = {"image": crops_of(sizes), "index": torch.arange(sizes.crops)}
        self.trainer = trainer_of(method, [batch], lambda image, generator, extent: [image], **(options or {}))

    def step(self) -> None:
        """Make one step of the optimiser: an epoch."""
        self.trainer.state.max_epochs += 1
        self.trainer.run()

    @property
    def network(self) -> nn.Module:
        """With its decoder."""
        return self.trainer.method

    @property
    def again(self) -> partial:
        """Makes another of any size, with the precision and memory format that this one has."""
        options = {"precision": self.trainer.precision, "channels_last": self.trainer.channels_last}
        return partial(Ours, self.name, options=options)


def crops_of(sizes: Sizes) -> Tensor:
    """Random crops (B, 1, D, H, W) in [0, 1]."""
    return torch.rand(sizes.crops, 1, *[sizes.side] * 3, generator=torch.Generator().manual_seed(0))


def masked_cnn(block_size: int) -> SSLMethod:
    """The bundle's method and network."""
    return MaskedAutoencoderCNN(build_encoder("segresnet", 3, 1, out_channels=1), block_size=block_size)


def masked_vit(sizes: Sizes) -> SSLMethod:
    """MAE on the tutorial's ViT."""
    shape = {"img_size": sizes.side, "patch_size": sizes.patch, "hidden_size": sizes.hidden, "mlp_dim": sizes.mlp}
    encoder = build_encoder("vit", 3, 1, num_layers=sizes.layers, num_heads=sizes.heads, **shape)
    width, depth, heads = sizes.decoder
    return MAEViT(encoder, decoder_width=width, decoder_depth=depth, decoder_heads=heads)


def trainer_of(method: SSLMethod, loader: Any, views: Any, **options: Any) -> PretrainTrainer:
    """The trainer with the bundle's optimiser."""
    optimizer = build_optimizer(method, "adamw", learning_rate=1e-4, weight_decay=0.05, betas=(0.9, 0.95))
    return PretrainTrainer("cpu", 0, loader, method, optimizer, views, clip_norm=1.0, **options)


def _rows(sizes: Sizes, rounds: int) -> Iterator[Row]:
    contestants: dict[Any, Tutorial | Ours] = {TUTORIAL: Tutorial(sizes)}
    contestants |= {(net, how): Ours(net, sizes, options) for net in (CNN, VIT) for how, options in _HOW.items()}
    for contestant in contestants.values():
        contestant.step()  # settles precision and memory format
    makers = {name: own.again for name, own in contestants.items()}
    weights = {name: sum(p.numel() for p in own.network.parameters()) for name, own in contestants.items()}
    names = [name for name in contestants if name != TUTORIAL]
    rows = {name: _row(name, sizes, weights, makers[name].keywords["options"]) for name in names}
    times = interleaved({name: partial(_milliseconds, own) for name, own in contestants.items()}, rounds)
    for name in names:
        yield compare_times(times[name], times[TUTORIAL], bench="masked autoencoding step", **rows[name])
    del contestants, contestant  # their memory is not needed while that of others is measured
    measures = {
        name: partial(peak_mib, __name__, partial(_warm_up, name), partial(_two_steps, maker, sizes))
        for name, maker in makers.items()
    }
    memory = interleaved(measures, max(1, rounds // 2), warm_up=False)
    for name in names:
        bench = "masked autoencoding, peak memory"
        yield compare_times(memory[name], memory[TUTORIAL], unit="MiB", bench=bench, **rows[name])


def _row(name: tuple[str, str], sizes: Sizes, weights: dict, chosen: dict[str, Any]) -> dict[str, Any]:
    """What the rows of a network and precision share."""
    held = [f"{weights[side] / 1e6:.1f} million ({16 * weights[side] / 2**20:.0f} MiB)" for side in (name, TUTORIAL)]
    order = "last" if chosen["channels_last"] else "first"
    return {
        "setting": f"{', '.join(name)}, {VOLUMES} volumes x {CROPS_EACH} crops of {sizes.side}^3",
        "threads": torch.get_num_threads(),
        "peer": TUTORIAL,
        "goal": GOAL,
        "note": f"parameters (with gradients and two moments) {held[0]} against {held[1]}; ours computed in "
        f"{chosen['precision']}, channels {order}",
    }


def _milliseconds(contestant: Tutorial | Ours) -> float:
    start = time.perf_counter()
    contestant.step()
    return (time.perf_counter() - start) * 1e3


def _warm_up(name: Any) -> None:
    """A tiny step, in fp32: another precision was found right for the full size only."""
    sizes = replace(TINY, crops=2)
    (Tutorial(sizes) if name == TUTORIAL else Ours(name[0], sizes, _HOW["fp32"])).step()


def _two_steps(maker: partial, sizes: Sizes) -> None:
    contestant = maker(sizes)
    contestant.step()
    contestant.step()  # only now the optimiser has its moments
