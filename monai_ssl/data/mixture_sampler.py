# SPDX-License-Identifier: Apache-2.0
"""Which source each batch, or each image, is taken from: by seed and epoch only, shared by processes, resumable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from monai_ssl.data.mixtures import SourceMixture
from monai_ssl.data.resumable_sampler import ResumableSampler

__all__ = ["MixtureSampler"]


class MixtureSampler(ResumableSampler):
    """Codes for a ``SourceMixture``: batches from one source each, or mixed ones.

    A source of n items (images; of volumes the volumes, not their slices) gets a share of an epoch in proportion to
    ``n ** (1 - temper)``: with ``temper`` 0 every item is read equally often, with 1 every source is, as in
    ``sampling_weights``. Its part of an epoch is that share to the nearest whole number of batches (mixed: of images),
    up or down by chance. Within a source, items come in an endless stream of shuffled passes that runs on from epoch to
    epoch, so all of them are read equally often, and no code comes twice in a run.

    Homogeneous batches (the default) keep contrast within one modality: negatives are of the anchor's kind, and a
    Sinkhorn assignment, which uses all prototypes equally within a batch, cannot tell modalities apart instead of
    what is in the images. All processes are at the same source in the same step. An image does not come twice in a
    batch: of each pass, what does not fill a batch is left out, another rest each time. Of volumes, whose patches and
    slices are drawn anew each time, one may come again.

    Give it to a ``DataLoader`` as ``sampler``, with the same ``batch_size`` and ``drop_last=True``. Call ``set_epoch``
    before each epoch. The sampler does not watch its own iterator (see ``EpochSampler``): who trains knows the position
    and sets it, ``load_state_dict(state_dict() | {"position": ...})``.

    Args:
        mixture: what the codes are for.
        batch_size: images a batch of this process.
        homogeneous: whether each batch is from one source.
        temper: from 0 to 1, see above.
        shares: shares of the sources instead, by name or in their order, above 0, of any sum.
        length: images an epoch, over all processes; what does not fill a batch of each of them is left out. None: as
            many as the mixture has items.
        seed: seed of the order.
        rank: number of this process.
        world: number of processes.

    Attributes:
        shares: of each source, (sources,); they sum to 1.
        epoch: epoch of the next ``iter()``.
        position: images of that epoch this process has had; the next ``iter()`` starts there.

    Raises:
        ValueError: a number is out of range, the shares are not those of the sources, or a source has fewer items than
            a homogeneous batch takes.
    """

    def __init__(
        self,
        mixture: SourceMixture,
        batch_size: int,
        *,
        homogeneous: bool = True,
        temper: float = 0.5,
        shares: Mapping[str, float] | Sequence[float] | None = None,
        length: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ):
        if batch_size < 1 or seed < 0 or not 0 <= rank < world:
            raise ValueError(
                f"batch_size is {batch_size} (1 or more), seed {seed} (0 or more), "
                f"rank {rank} of {world} (0 to world - 1)"
            )
        super().__init__(rank, world)
        self.batch = batch_size * world
        self.length = (len(mixture) if length is None else length) // self.batch * self.batch
        if not self.length:
            raise ValueError(
                f"an epoch of {len(mixture) if length is None else length} images does not fill one batch of "
                f"{self.batch} ({batch_size} in each of {world} processes); use a smaller batch_size or more data"
            )
        self.sizes = list(mixture.sizes)
        self.shares = _shares(mixture, temper, shares)
        self.homogeneous = homogeneous
        self.seed = seed
        self._starts = mixture.starts[:-1]
        # Items that a pass over a source gives: in homogeneous batches of images those of whole batches.
        self._passes = np.array(self.sizes)
        for number, name in enumerate(mixture.names):
            if homogeneous and not mixture.draws_anew[number]:
                self._passes[number] = self.sizes[number] // self.batch * self.batch
                if not self._passes[number]:
                    raise ValueError(
                        f"the source {name!r} has {self.sizes[number]} images, fewer than a batch of {self.batch} "
                        f"({batch_size} in each of {world} processes) takes; use a smaller batch_size, mixed batches "
                        "(homogeneous=False), or leave the source out"
                    )

    def __len__(self) -> int:
        """Images of a whole epoch for this process, wherever it starts."""
        return self.length // self.world

    def __iter__(self) -> Iterator[int]:
        rounds = np.arange(self.position, len(self)) * self.world + self.rank
        return iter(self._codes()[rounds].tolist())

    def _order_facts(self) -> dict[str, Any]:
        return {
            "sizes": self.sizes,
            "shares": self.shares.tolist(),
            "batch": self.batch,
            "length": self.length,
            "homogeneous": self.homogeneous,
            "seed": self.seed,
        }

    def _own_position(self, seen: int, world: int) -> int:
        return seen // self.batch * self.batch // self.world  # a batch that was begun is read again

    def _codes(self) -> np.ndarray:
        """Codes of the epoch, over all processes."""
        unit = self.batch if self.homogeneous else 1
        counts = self._counts(self.epoch)
        before = sum((self._counts(epoch) for epoch in range(self.epoch)), np.zeros_like(counts))
        order = np.random.default_rng([self.seed, 1, self.epoch]).permutation(np.repeat(np.arange(len(counts)), counts))
        source = np.repeat(order, unit)
        codes = np.empty(self.length, dtype=np.int64)
        for number in np.flatnonzero(counts):
            first = int(before[number]) * unit
            codes[source == number] = self._stream(number, first, first + int(counts[number]) * unit)
        return codes

    def _counts(self, epoch: int) -> np.ndarray:
        """Batches (mixed: images) of each source in an epoch."""
        units = self.length // (self.batch if self.homogeneous else 1)
        offset = np.random.default_rng([self.seed, 0, epoch]).random()
        # Systematic sampling: one draw places a comb of even teeth on the cumulated shares; teeth below each edge.
        edges = np.append(np.cumsum(self.shares)[:-1], 1.0)
        below = np.clip(np.ceil(edges * units - offset), 0, units).astype(np.int64)
        return np.diff(below, prepend=0)

    def _stream(self, number: int, start: int, stop: int) -> np.ndarray:
        """Codes ``start`` to ``stop - 1`` of the endless stream of a source."""
        whole, size = int(self._passes[number]), self.sizes[number]
        total, parts = sum(self.sizes), []
        for turn in range(start // whole, -(-stop // whole)):
            items = np.random.default_rng([self.seed, 2, int(number), turn]).permutation(size)
            within = items[max(start - turn * whole, 0) : min(stop - turn * whole, whole)]
            parts.append(turn * total + int(self._starts[number]) + within)
        return np.concatenate(parts)


def _shares(mixture: SourceMixture, temper: float, given: Mapping[str, float] | Sequence[float] | None) -> np.ndarray:
    """Share of each source in an epoch."""
    if given is None:
        if not 0 <= temper <= 1:
            raise ValueError(f"temper is {temper}; use 0 (all items alike) to 1 (all sources alike)")
        weights = np.array(mixture.sizes, dtype=np.float64) ** (1 - float(temper))
    else:
        if isinstance(given, Mapping):
            if set(given) != set(mixture.names):
                raise ValueError(f"shares are given for {list(given)}, but the sources are {mixture.names}")
            given = [given[name] for name in mixture.names]
        weights = np.array(given, dtype=np.float64)
        if weights.shape != (len(mixture.names),) or not np.isfinite(weights).all() or weights.min() <= 0:
            raise ValueError(
                f"shares must be {len(mixture.names)} finite numbers above 0, for {mixture.names}, got {list(given)}; "
                "a source that is not wanted is left out of the mixture"
            )
    return weights / weights.sum()
