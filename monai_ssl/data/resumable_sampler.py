# SPDX-License-Identifier: Apache-2.0
"""What the samplers share: an epoch and a position that a training sets, saves and goes on from."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch.utils.data import Sampler

__all__ = ["ResumableSampler"]


class ResumableSampler(Sampler[int]):
    """Base of samplers whose order depends on seed and epoch only and is shared by several processes.

    Args:
        rank: number of this process.
        world: number of processes.

    Attributes:
        epoch: epoch of the next ``iter()``.
        position: samples of that epoch this process has had; the next ``iter()`` starts there.
    """

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world
        self.epoch = self.position = 0

    @abstractmethod
    def __len__(self) -> int:
        """Samples of a whole epoch for this process, wherever it starts."""

    @abstractmethod
    def _order_facts(self) -> dict[str, Any]:
        """What the order depends on beside the epoch, as plain values."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; another one than now starts at its beginning."""
        if epoch != self.epoch:
            self.epoch = epoch
            self.position = 0

    def state_dict(self) -> dict[str, Any]:
        """Where the next ``iter()`` starts, and what the order depends on."""
        return {"epoch": self.epoch, "position": self.position, "world": self.world, **self._order_facts()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state, also of another number of processes (samples of an unfinished round are seen again).

        Raises:
            ValueError: if the state belongs to other data or another order, or the position is negative.
        """
        for name, now in self._order_facts().items():
            if state[name] != now:
                told = f"was {state[name]} and is {now}"
                raise ValueError(
                    f"the sampler's {name} {told if len(told) < 200 else 'changed'}: the epoch cannot go on in the "
                    "same order; resume with the same data, settings and seed, or start a new run"
                )
        if state["position"] < 0:
            raise ValueError(f"position is {state['position']}; use 0 or more")
        self.epoch = int(state["epoch"])
        # Batches times batch size may pass the end, if the last batch is smaller.
        world = int(state["world"])
        self.position = min(self._own_position(int(state["position"]) * world, world), len(self))

    def _own_position(self, seen: int, world: int) -> int:
        """Position of this process when ``world`` processes together have had ``seen`` samples."""
        return seen // self.world
