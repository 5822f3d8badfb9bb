# SPDX-License-Identifier: Apache-2.0
"""A method and data small enough to train in milliseconds, with every kind of state that a resume must bring back."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import numpy as np
import torch
from monai.utils import set_determinism
from torch import nn
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, Dataset, Sampler

from monai_ssl.engines import PretrainTrainer, build_optimizer, warmup_cosine


class ToyEncoder(nn.Module):
    num_features = 8

    def __init__(self, spatial_dims: int = 2) -> None:
        super().__init__()
        conv = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        norm = nn.BatchNorm2d if spatial_dims == 2 else nn.BatchNorm3d
        self.net = nn.Sequential(conv(1, 8, 3, stride=2, padding=1), norm(8), nn.ReLU(), conv(8, 8, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x).flatten(2).mean(2)


class ToyMethod(nn.Module):
    """Student, teacher, queue, dropout (global random numbers) and a draw from the views' generator."""

    def __init__(self, spatial_dims: int = 2, dropout: float = 0.1) -> None:
        super().__init__()
        self.encoder = ToyEncoder(spatial_dims)
        self.head = nn.Linear(8, 4)
        self.teacher = copy.deepcopy(nn.Sequential(self.encoder, self.head)).requires_grad_(False)
        self.register_buffer("queue", normalize(torch.randn(16, 4), dim=1))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.dropout = dropout
        self.progress: list[float] = []

    def forward(self, batch: dict) -> dict:
        first, second = batch["views"]
        query = self.head(nn.functional.dropout(self.encoder(first), self.dropout)).float()
        query = normalize(query, dim=1)
        with torch.no_grad():
            key = normalize(self.teacher(second).float(), dim=1)
        logits = torch.cat([(query * key).sum(1, keepdim=True), query @ self.queue.clone().T], dim=1) / 0.2
        loss = nn.functional.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))
        self._keys = key
        return {"loss": loss, "accuracy": (logits.argmax(1) == 0).float().mean(), "embedding": query.detach()}

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        self.progress.append(progress)
        self.steps += 1
        student = nn.Sequential(self.encoder, self.head)
        for ours, theirs in zip(self.teacher.parameters(), student.parameters(), strict=True):
            ours.lerp_(theirs, 0.1)
        self.queue.copy_(torch.cat([self._keys, self.queue])[:16])

    def parameter_groups(self, weight_decay: float) -> list[dict]:
        trainable = [p for p in self.parameters() if p.requires_grad]
        return [
            {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
        ]


class ToyImages(Dataset):
    """Images that depend on their number only; ``noisy`` adds what augmentation in a loader would draw."""

    def __init__(self, length: int = 20, size: int = 8, spatial_dims: int = 2, noisy: bool = False) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (1,) * spatial_dims
        brightness, contrast = torch.rand(2, length, 1, *shape, generator=generator)
        self.images = brightness + contrast * torch.rand(length, 1, *[size] * spatial_dims, generator=generator)
        self.noisy = noisy

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict:
        image = self.images[i]
        if self.noisy:
            image = image + 0.1 * torch.randn(image.shape) + float(np.random.rand()) + random.random()  # noqa: NPY002
        return {"image": image, "index": i}


class ToyEpochSampler(Sampler):
    """The state that ``monai_ssl.data.EpochSampler`` promises: an epoch and a position in it."""

    def __init__(self, length: int) -> None:
        self.length, self.epoch, self.position = length, 0, 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self):
        order = torch.randperm(self.length, generator=torch.Generator().manual_seed(self.epoch)).tolist()
        start, self.position = self.position, 0
        yield from order[start:]

    def set_epoch(self, epoch: int) -> None:
        self.epoch, self.position = epoch, 0

    def state_dict(self) -> dict:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict) -> None:
        self.epoch, self.position = state["epoch"], state["position"]


def toy_views(image: torch.Tensor, generator=None, extent=None) -> list[torch.Tensor]:
    return [
        image + 0.02 * torch.randn(image.shape, generator=generator, device=image.device),
        image.flip(-1) * (1 + 0.02 * torch.rand((), generator=generator, device=image.device)),
    ]


def toy_trainer(
    *,
    max_epochs: int = 3,
    batch_size: int = 4,
    dataset: Dataset | None = None,
    loader=None,
    method: Callable[[], nn.Module] = ToyMethod,
    optimizer: str = "sgd",
    learning_rate: float = 0.1,
    seed: int = 0,
    views: Callable[..., list[torch.Tensor]] = toy_views,
    **options,
) -> PretrainTrainer:
    set_determinism(seed)
    torch.use_deterministic_algorithms(False)
    network = method()
    if loader is None:
        dataset = dataset or ToyImages()
        loader = DataLoader(dataset, batch_size, sampler=ToyEpochSampler(len(dataset)), drop_last=True)
    defaults = {
        "precision": "fp32",
        "channels_last": False,
        "learning_rate_schedule": warmup_cosine(warmup_steps=2),
        "seed": seed,
    }
    return PretrainTrainer(
        "cpu",
        max_epochs,
        loader,
        network,
        build_optimizer(network, optimizer, learning_rate, 1e-4),
        views,
        **(defaults | options),
    )


class LossLog:
    """Handler that keeps each iteration's loss, and optionally stops the training after a number of them."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.losses: dict[int, float] = {}
        self.rates: list[float] = []
        self.stop_after = stop_after

    def attach(self, engine) -> None:
        from ignite.engine import Events

        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine) -> None:
        self.losses[engine.state.iteration] = engine.state.output["loss"]
        self.rates.append(engine.state.output["learning_rate"])
        if engine.state.iteration == self.stop_after:
            engine.terminate()
