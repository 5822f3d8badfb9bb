# SPDX-License-Identifier: Apache-2.0
"""The order in which fine-tuning sees its labelled images: a fixed number a "epoch", however few images there are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler

__all__ = ["FixedLengthSampler"]


class FixedLengthSampler(Sampler[int]):
    """A fixed number of samples each epoch, every sample equally often over the epochs; resumes anywhere.

    An endless stream of shuffled passes over the samples is cut into epochs, so training on 14 images and on 1,400
    takes the same steps. With ``classes`` each class has such a stream of its own and an equal share of every epoch.

    Args:
        num_samples: samples to choose from.
        length: samples of one epoch, over all processes.
        seed: of the order.
        classes: ``(num_samples,)`` integers, to balance the classes; None leaves their frequencies as they are.
        rank: number of this process.
        world: number of processes; process ``rank`` takes every ``world``-th sample.

    Attributes:
        epoch: epoch of the next ``iter()``.
        position: samples of that epoch this process has had; the next ``iter()`` starts there.

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(
        self,
        num_samples: int,
        length: int,
        seed: int = 0,
        classes: np.ndarray | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if num_samples < 1 or length < world or not 0 <= rank < world or seed < 0:
            raise ValueError(
                "num_samples must be at least 1, length at least world, rank below world and seed at least 0, got "
                f"{num_samples}, {length}, {rank} of {world} and {seed}"
            )
        strata = np.zeros(num_samples, dtype=np.int64) if classes is None else np.asarray(classes)
        if strata.shape != (num_samples,):
            raise ValueError(f"classes must have shape ({num_samples},), got {strata.shape}")
        self.length, self.seed, self.rank, self.world = length, seed, rank, world
        self.members = [np.flatnonzero(strata == value) for value in np.unique(strata)]
        self.epoch = 0
        self.position = 0

    def __len__(self) -> int:
        """Samples of a whole epoch for this process."""
        return self.length // self.world

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; another one than now starts at its beginning."""
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def __iter__(self) -> Iterator[int]:
        rounds = np.arange(self.position, len(self)) * self.world + self.rank
        return iter(self._order()[rounds].tolist())

    def state_dict(self) -> dict[str, Any]:
        """Where the next ``iter()`` starts."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.epoch, self.position = int(state["epoch"]), int(state["position"])

    def _order(self) -> np.ndarray:
        """Indices of the epoch, over all processes."""
        shares = [len(part) for part in np.array_split(np.arange(self.length), len(self.members))]
        drawn = [self._stretch(number, share) for number, share in enumerate(shares)]
        return np.random.default_rng([self.seed, 1, self.epoch]).permutation(np.concatenate(drawn))

    def _stretch(self, number: int, share: int) -> np.ndarray:
        """The epoch's part of one class's stream."""
        members = self.members[number]
        first, last = self.epoch * share, (self.epoch + 1) * share
        passes = range(first // len(members), -(-last // len(members)))
        stream = [np.random.default_rng([self.seed, 2, number, p]).permutation(members) for p in passes]
        start = first - (first // len(members)) * len(members)
        return np.concatenate([*stream, members[:0]])[start : start + share]
