# SPDX-License-Identifier: Apache-2.0
"""Which volume a patch is read from and which of its endless draws it is: by seed and position only, also weighted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from monai_ssl.data.resumable_sampler import ResumableSampler
from monai_ssl.data.store import ImageStore
from monai_ssl.data.tables import require_columns


class PatchSampler(ResumableSampler):
    """Codes ``draw * num_samples + i`` for ``VolumePatchDataset``: patches of an epoch as long as you like.

    Without weights an endless stream of shuffled passes over the volumes is cut into epochs: all volumes are read
    equally often, and ``draw`` is the number of the pass. With weights each epoch holds every volume as often as its
    share of ``length`` says, rounded up or down by chance, in random order. No code comes twice in a run. The order is
    the same for any number of processes, of which each takes every ``world``-th.

    With ``places_per_volume`` p, the volumes come p times in a row, each time with another draw, so that a batch holds
    several places of one volume. To contrast them a network must know anatomy: patient, scanner and exposure are the
    same.

    Call ``set_epoch`` before each epoch. The sampler does not watch its own iterator (see ``EpochSampler``): who
    trains knows the position and sets it, ``load_state_dict(state_dict() | {"position": ...})``.

    Args:
        num_samples: volumes, ``len(dataset)``.
        length: patches an epoch, over all processes; what does not fill a round of all processes is left out.
        seed: seed of the order.
        weights: how often each volume is wanted, (num_samples,), 0 or more, of any sum. None: all alike.
        rank: number of this process.
        world: number of processes.
        places_per_volume: p; ``length`` must be a multiple of it.

    Attributes:
        epoch: epoch of the next ``iter()``.
        position: patches of that epoch this process has had; the next ``iter()`` starts there.

    Raises:
        ValueError: if a number is out of range, or the weights are not one finite number for each volume.
    """

    def __init__(
        self,
        num_samples: int,
        length: int,
        seed: int = 0,
        weights: Sequence[float] | np.ndarray | None = None,
        rank: int = 0,
        world: int = 1,
        places_per_volume: int = 1,
    ):
        if places_per_volume < 1 or length % places_per_volume:
            raise ValueError(
                f"places_per_volume is {places_per_volume}; use 1 or more, of which length ({length}) is a multiple"
            )
        if num_samples < 1 or seed < 0 or not 0 <= rank < world or length < world:
            raise ValueError(
                f"num_samples is {num_samples} (1 or more), length {length} (world or more), seed {seed} (0 or more), "
                f"rank {rank} of {world} (0 to world - 1)"
            )
        self.weights = None if weights is None else _shares(weights, num_samples)
        self.num_samples = num_samples
        self.length = length
        super().__init__(rank, world)
        self.seed = seed
        self.places_per_volume = places_per_volume

    def __len__(self) -> int:
        """Patches of a whole epoch for this process, wherever it starts."""
        return self.length // self.world

    def __iter__(self) -> Iterator[int]:
        rounds = np.arange(self.position, len(self)) * self.world + self.rank
        return iter(self._codes()[rounds].tolist())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`ResumableSampler.load_state_dict`; older states know one place in a volume only."""
        super().load_state_dict({"places_per_volume": 1, **state})

    def _order_facts(self) -> dict[str, Any]:
        return {
            "num_samples": self.num_samples,
            "length": self.length,
            "seed": self.seed,
            "weights": None if self.weights is None else self.weights.tolist(),
            "places_per_volume": self.places_per_volume,
        }

    def _codes(self) -> np.ndarray:
        """Codes of the epoch, over all processes."""
        draws, volumes = np.divmod(self._chosen(self.length // self.places_per_volume), self.num_samples)
        draws = draws[:, None] * self.places_per_volume + np.arange(self.places_per_volume)
        return (draws * self.num_samples + volumes[:, None]).ravel()

    def _chosen(self, length: int) -> np.ndarray:
        """Codes of one place in each of ``length`` volumes."""
        first = self.epoch * length
        if self.weights is not None:
            random = np.random.default_rng([self.seed, 1, self.epoch])
            # Systematic sampling: one draw places a comb of `length` even teeth on the cumulated shares.
            teeth = (np.arange(length) + random.random()) / length
            wanted = np.flatnonzero(self.weights)
            chosen = wanted[np.searchsorted(np.cumsum(self.weights[wanted])[:-1], teeth, side="right")]
            return (first + np.arange(length)) * self.num_samples + random.permutation(chosen)
        last = first + length
        passes = np.arange(first // self.num_samples, -(-last // self.num_samples))
        codes = [number * self.num_samples + self._pass(int(number)) for number in passes]
        start = first - int(passes[0]) * self.num_samples
        return np.concatenate(codes)[start : start + length]

    def _pass(self, number: int) -> np.ndarray:
        return np.random.default_rng([self.seed, 0, number]).permutation(self.num_samples)


def _shares(weights: Sequence[float] | np.ndarray, num_samples: int) -> np.ndarray:
    shares = np.asarray(weights, dtype=np.float64)
    if shares.shape != (num_samples,) or not np.isfinite(shares).all() or shares.min() < 0 or shares.sum() <= 0:
        raise ValueError(
            f"weights must be {num_samples} finite numbers, 0 or more and not all 0; got shape {shares.shape}"
        )
    return shares / shares.sum()


def sampling_weights(
    store: ImageStore,
    rows: Sequence[int] | np.ndarray | None = None,
    by: Sequence[str] | str = ("modality",),
    temper: float = 1.0,
) -> np.ndarray:
    """Weights for ``PatchSampler`` that even out groups of unequal size, such as modalities, sites or patients.

    A group of n volumes gets a share of the patches in proportion to ``n ** (1 - temper)``, its volumes equal parts of
    it: with ``temper`` 1 all groups get the same, with 0 all volumes.

    Args:
        store: the store.
        rows: rows of ``store.table``, as the dataset has them. None: all.
        by: columns whose values make the groups; where several are given, their combinations. A missing value is a
            group of its own.
        temper: from 0 to 1.

    Returns:
        float64, one weight for each row; they sum to 1.

    Raises:
        ValueError: if there is no such column, or ``temper`` is out of range.

    >>> from types import SimpleNamespace
    >>> import pyarrow as pa
    >>> store = SimpleNamespace(table=pa.table({"modality": ["CT", "CT", "CT", "MR"]}), folder="store")
    >>> sampling_weights(store).round(3).tolist()
    [0.167, 0.167, 0.167, 0.5]
    """
    if not 0 <= temper <= 1:
        raise ValueError(f"temper is {temper}; use 0 (all volumes alike) to 1 (all groups alike)")
    by = [by] if isinstance(by, str) else list(by)
    require_columns(store.table, by, f"the table of {store.folder}")
    columns = [store.table[name].to_pylist() for name in by]
    keys = [repr(values) for values in zip(*columns, strict=True)]
    chosen = np.array(keys)[np.arange(len(keys)) if rows is None else np.asarray(rows)]
    _, group, counts = np.unique(chosen, return_inverse=True, return_counts=True)
    weights = counts[group] ** -float(temper)
    return weights / weights.sum()
