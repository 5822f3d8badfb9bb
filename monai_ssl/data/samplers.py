# SPDX-License-Identifier: Apache-2.0
"""An order of samples that depends on seed and epoch only, resumes anywhere and is shared by processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from monai_ssl.data.resumable_sampler import ResumableSampler


class EpochSampler(ResumableSampler):
    """Indices of one epoch, shuffled by (seed, epoch), for one of several processes.

    The order of the whole epoch is the same for any number of processes; process ``rank`` takes every ``world``-th
    entry of it, with ``groups`` every ``world``-th two. So a run may be resumed at any position, even with another
    number of processes. All processes get the same number of samples: the order is padded with its own beginning, or
    cut with ``drop_last``.

    Call ``set_epoch`` before each epoch. The sampler does not watch its own iterator (a loader reads ahead of the
    training); who trains knows the position and sets it: ``load_state_dict(state_dict() | {"position": ...})``.

    Args:
        length: number of samples.
        seed: seed of the order.
        shuffle: False gives the order 0, 1, 2, ...
        rank: number of this process.
        world: number of processes.
        drop_last: drop the samples that do not fill a round of all processes, rather than repeating some.
        groups: a number for each sample, of its patient, say (``positive_groups`` gives finer ones): samples of one
            group come in pairs, the two right after one another and both to the same process, so that a batch of even
            size holds the partners that contrastive methods look for. Which two form a pair changes from epoch to
            epoch. A negative number belongs to no group. None: chance alone decides.

    Attributes:
        epoch: epoch of the next ``iter()``.
        position: samples of that epoch this process has had; the next ``iter()`` starts there.
    """

    def __init__(
        self,
        length: int,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = False,
        groups: Sequence[int] | np.ndarray | None = None,
    ):
        if seed < 0:
            raise ValueError(f"seed is {seed}; use 0 or more")
        if length < 1 or not 0 <= rank < world:
            raise ValueError(f"length is {length} (1 or more), rank {rank} of {world} (0 to world - 1)")
        if drop_last and length < world:
            raise ValueError(f"{length} samples for {world} processes leave none each with drop_last")
        if groups is not None and (len(groups) != length or not shuffle):
            raise ValueError(f"groups need shuffle=True and one number for each of {length} samples, got {len(groups)}")
        self.groups = None if groups is None else _numbered(np.asarray(groups))
        self.length = length
        super().__init__(rank, world)
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last

    def __len__(self) -> int:
        """Samples of a whole epoch for this process, wherever it starts."""
        return self.length // self.world if self.drop_last else -(-self.length // self.world)

    def __iter__(self) -> Iterator[int]:
        place = np.arange(self.position, len(self))
        rounds = place * self.world + self.rank
        if self.groups is not None:  # by twos; an odd last one is dealt singly
            by_twos = 2 * (place // 2 * self.world + self.rank) + place % 2
            rounds = np.where(place < len(self) // 2 * 2, by_twos, rounds)
        return iter(self._order()[rounds % self.length].tolist())

    def _order_facts(self) -> dict[str, Any]:
        return {"length": self.length, "seed": self.seed, "shuffle": self.shuffle, "paired": self.groups is not None}

    def _own_position(self, seen: int, world: int) -> int:
        position = super()._own_position(seen, world)
        unfinished = self.groups is not None and world != self.world and position < len(self)
        return position - position % 2 if unfinished else position  # a pair that was begun comes again

    def _order(self) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.length)
        random = np.random.default_rng([self.seed, self.epoch])
        order = random.permutation(self.length)
        return order if self.groups is None else self._paired(order, random)

    def _paired(self, order: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Bring two of a group together wherever they can be, from an even place on; all else stays shuffled."""
        order = order[np.argsort(self.groups[order], kind="stable")]  # group by group, shuffled within
        group = self.groups[order]
        starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
        sizes = np.diff(np.r_[starts, self.length])
        alone = np.zeros(self.length, dtype=bool)
        alone[(starts + sizes - 1)[sizes % 2 == 1]] = True  # the last one of each group of an odd number
        pairs, singles = order[~alone].reshape(-1, 2), random.permutation(order[alone])
        twos = np.concatenate([pairs, singles[: len(singles) // 2 * 2].reshape(-1, 2)])
        return np.concatenate([random.permutation(twos).ravel(), singles[len(twos) * 2 - pairs.size :]])


def _numbered(groups: np.ndarray) -> np.ndarray:
    """Number groups as they first appear, so that the order does not depend on what they are called (salted hashes).

    Each negative number is a group of its own.
    """
    if np.issubdtype(groups.dtype, np.signedinteger):
        unknown = groups < 0
        groups = np.where(unknown, -np.cumsum(unknown), groups)
    _, first, number = np.unique(groups, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[number]
