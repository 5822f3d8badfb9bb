# SPDX-License-Identifier: Apache-2.0
"""Batches in which no study comes twice, so that a report is no false negative of the study's other images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from monai_ssl.data.hashing import stream_hash
from monai_ssl.data.resumable_sampler import ResumableSampler

__all__ = ["StudySampler"]


class StudySampler(ResumableSampler):
    """Codes ``epoch * length + i`` for :class:`ReportDataset`: batches that never hold two images of one study.

    Contrast of images with reports takes every other report of the batch for a wrong one; two images of one study would
    make the right one wrong. What counts is the batch of all processes together, since features are gathered.

    The images of an epoch are shuffled by (seed, epoch) and dealt to the batches study by study, like cards. What does
    not fill a batch of all processes is left out, another rest each time; so is, of a study with more images than the
    epoch has batches, what would come twice in one.

    Give it to a ``DataLoader`` as ``sampler``, with the same ``batch_size`` and ``drop_last=True``. Call ``set_epoch``
    before each epoch. The sampler does not watch its own iterator (see ``EpochSampler``): who trains knows the position
    and sets it, ``load_state_dict(state_dict() | {"position": ...})``.

    Args:
        studies: a number for each item, equal for items to be kept apart: ``ReportDataset.study``. By patient, give the
            patients' numbers.
        batch_size: images a batch of this process.
        seed: seed of the order.
        rank: number of this process.
        world: number of processes.

    Attributes:
        epoch: epoch of the next ``iter()``.
        position: images of that epoch this process has had; the next ``iter()`` starts there.

    Raises:
        ValueError: a number is out of range, or there are fewer studies than a batch takes.

    >>> sampler = StudySampler([0, 0, 1, 2, 2, 3], batch_size=3)
    >>> sorted(sampler), len(sampler)
    ([0, 1, 2, 3, 4, 5], 6)
    """

    def __init__(
        self, studies: Sequence[int] | np.ndarray, batch_size: int, seed: int = 0, rank: int = 0, world: int = 1
    ):
        self.studies = np.asarray(studies)
        if self.studies.ndim != 1 or not np.issubdtype(self.studies.dtype, np.integer):
            raise ValueError(
                f"studies must be one integer for each item, got {self.studies.dtype} {self.studies.shape}"
            )
        if batch_size < 1 or seed < 0 or not 0 <= rank < world:
            raise ValueError(
                f"batch_size is {batch_size} (1 or more), seed {seed} (0 or more), "
                f"rank {rank} of {world} (0 to world - 1)"
            )
        super().__init__(rank, world)
        self.seed = seed
        self.batch = batch_size * world
        sizes = np.unique(self.studies, return_counts=True)[1]
        if len(sizes) < self.batch:
            raise ValueError(
                f"{len(sizes)} studies cannot fill a batch of {self.batch} ({batch_size} in each of {world} processes) "
                "in which no study comes twice; use a smaller batch_size or more data"
            )
        possible = range(len(self.studies) // self.batch, 0, -1)
        self.batches = next(number for number in possible if np.minimum(sizes, number).sum() >= number * self.batch)

    def __len__(self) -> int:
        """Images of a whole epoch for this process, wherever it starts."""
        return self.batches * self.batch // self.world

    def __iter__(self) -> Iterator[int]:
        rounds = np.arange(self.position, len(self)) * self.world + self.rank
        return iter((self._order()[rounds] + self.epoch * len(self.studies)).tolist())

    def _order_facts(self) -> dict[str, Any]:
        digest = stream_hash([np.ascontiguousarray(self.studies, dtype="<i8").tobytes()])
        return {"studies": digest, "batch": self.batch, "seed": self.seed}

    def _own_position(self, seen: int, world: int) -> int:
        return seen // self.batch * self.batch // self.world  # a batch that was begun is read again

    def _order(self) -> np.ndarray:
        """Items of the epoch, batch by batch, over all processes."""
        random = np.random.default_rng([self.seed, self.epoch])
        order = random.permutation(len(self.studies))
        _, first, number = np.unique(self.studies[order], return_index=True, return_inverse=True)
        by_study = np.argsort(number, kind="stable")
        within = np.empty(len(order), dtype=np.int64)  # the how many-th image of its study each one is
        within[by_study] = np.arange(len(order)) - np.repeat(*_runs(number))
        kept = np.flatnonzero(within < self.batches)[: self.batches * self.batch]
        # Study by study, in the order of their first images. A study has no more images than there are batches, so the
        # dealing round does not come back to it.
        dealt = order[kept[np.argsort(first[number[kept]], kind="stable")]]
        batches = random.permuted(dealt.reshape(self.batch, self.batches).T, axis=1)
        return random.permutation(batches).ravel()


def _runs(number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the run of each number starts once sorted, and its length."""
    lengths = np.bincount(number)
    return np.cumsum(lengths) - lengths, lengths
