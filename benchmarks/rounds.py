# SPDX-License-Identifier: Apache-2.0
"""How everything here is measured: interleaved rounds, medians with ranges, ratios within a round."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Spread:
    """Median and range over the rounds."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        values = list(values)
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{_short(self.median)} ({_short(self.min)} to {_short(self.max)})"


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        bench: what is measured.
        setting: sizes and the like.
        threads: threads that either side may use.
        peer: who is compared with.
        unit: of ``ours`` and ``theirs``.
        ours: figures of ours.
        theirs: figures of the peer.
        ratio: how many times as fast ours is, or as small (memory); each round gives one ratio, so a slow moment of
            the machine that lasts a round cancels.
        goal: the least ratio wanted, or None.
        note: what else was found.
        load: load average of the machine when the row was done; the benchmark itself is a part of it.
    """

    bench: str
    setting: str
    threads: int
    peer: str
    unit: str
    ours: Spread
    theirs: Spread
    ratio: Spread
    goal: float | None = None
    note: str = ""
    load: float = field(default_factory=lambda: round(os.getloadavg()[0], 2))

    @property
    def reached(self) -> bool | None:
        """Whether the median ratio reaches the goal; None without a goal."""
        return None if self.goal is None else self.ratio.median >= self.goal

    @property
    def verdict(self) -> str:
        """The ratio, unless the rounds do not even agree on who is faster, and the goal."""
        if self.goal is None and self.ratio.min < 1 < self.ratio.max:
            return f"no clear difference ({self.ratio.min:.2f} to {self.ratio.max:.2f})"
        goal = "" if self.goal is None else f", goal {self.goal:.3g}: {'reached' if self.reached else 'MISSED'}"
        return f"{self.ratio}{goal}"

    def __str__(self) -> str:
        head = f"{self.bench}, {self.setting}, {self.threads} thread(s), against {self.peer}"
        figures = f"ours {self.ours} {self.unit}, theirs {self.theirs} {self.unit}, times as good: {self.verdict}"
        return "\n    ".join([head, figures, *([self.note] if self.note else [])])

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"reached": self.reached}


def compare_times(ours: list[float], theirs: list[float], *, unit: str = "ms", **row: Any) -> Row:
    """Make a row of milliseconds, or of another ``unit`` of which less is better (MiB), one a round."""
    ratio = Spread.of(b / a for a, b in zip(ours, theirs, strict=True))
    return Row(unit=unit, ours=Spread.of(ours), theirs=Spread.of(theirs), ratio=ratio, **row)


def compare_rates(ours: list[float], theirs: list[float], *, unit: str, **row: Any) -> Row:
    """Make a row of rates (more is better), one a round."""
    ratio = Spread.of(a / b for a, b in zip(ours, theirs, strict=True))
    return Row(unit=unit, ours=Spread.of(ours), theirs=Spread.of(theirs), ratio=ratio, **row)


def interleaved(contestants: dict[str, Callable[[], float]], rounds: int, warm_up: bool = True) -> dict[str, list]:
    """Let each contestant measure itself once a round; every second round goes in reverse order.

    Args:
        contestants: functions that do the work once and return a figure.
        rounds: measured rounds.
        warm_up: let each go once unmeasured.

    Returns:
        The figures of each contestant, one a round.
    """
    figures: dict[str, list[float]] = {name: [] for name in contestants}
    if warm_up:
        for measure in contestants.values():
            measure()
    for number in range(rounds):
        order = list(contestants)[:: -1 if number % 2 else 1]
        for name in order:
            figures[name].append(contestants[name]())
    return figures


def rate_of(work: Callable[[], int]) -> Callable[[], float]:
    """Return a contestant that measures how much of what ``work`` returns it does in a second."""

    def measure() -> float:
        start = time.perf_counter()
        done = work()
        return done / (time.perf_counter() - start)

    return measure


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Let torch compute in ``number`` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
