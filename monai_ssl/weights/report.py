# SPDX-License-Identifier: Apache-2.0
"""What became of each tensor when weights were loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["LoadReport", "WeightsMismatchError"]

_SHOWN = 4


class WeightsMismatchError(ValueError):
    """Too little of a file of weights fits the network, or its first layer does not; nothing was loaded.

    Attributes:
        report: what would have become of each tensor.
    """

    def __init__(self, message: str, report: LoadReport) -> None:
        super().__init__(message)
        self.report = report


@dataclass
class LoadReport:
    """Which tensors of a file went where. Keys are the network's own, sizes are bytes.

    Attributes:
        source: path of the file.
        network: class of the network.
        location: where in the network the encoder sits, for example ``"encoder"``; empty if it is the network itself.
        loaded: tensors now equal to the file's, or derived from them (see ``adapted``).
        missing: tensors of the network's encoder that the file does not have; left as they were.
        mismatched: tensors of another shape, (file's, network's); left as they were.
        mismatched_bytes: their size in the network.
        unexpected: tensors of the file that have no place in the network.
        kept: the network's other tensors, left as they were: its task head, heads for deep supervision, and a decoder
            that the file does not have. They count in no coverage.
        adapted: tensors loaded in changed form, and how.
        notes: differences that change what the network computes although the tensors fit.
        net_coverage: loaded part (by bytes) of the network's encoder.
        file_coverage: loaded part (by bytes) of the file.
        lineage: training stages the weights went through, oldest first.
    """

    source: str
    network: str
    location: str = ""
    loaded: dict[str, int] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    mismatched_bytes: int = 0
    unexpected: dict[str, int] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    adapted: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    net_coverage: float = 0.0
    file_coverage: float = 0.0
    lineage: tuple[dict[str, Any], ...] = ()

    @property
    def coverage(self) -> float:
        """The smaller of the two coverages: what the threshold is compared with."""
        return min(self.net_coverage, self.file_coverage)

    def __str__(self) -> str:
        target = f"{self.network}.{self.location}" if self.location else self.network
        shapes = {key: f"{key} (file {list(old)}, net {list(new)})" for key, (old, new) in self.mismatched.items()}
        covered = f"{self.net_coverage:.1%} of the net's encoder, {self.file_coverage:.1%} of the file"
        lines = [
            f"{self.source} -> {target}: {covered}",
            _row("loaded", len(self.loaded), sum(self.loaded.values()), []),
            _row("missing", len(self.missing), sum(self.missing.values()), list(self.missing)),
            _row("mismatched", len(self.mismatched), self.mismatched_bytes, list(shapes.values())),
            _row("unexpected", len(self.unexpected), sum(self.unexpected.values()), list(self.unexpected)),
            _row("kept", len(self.kept), sum(self.kept.values()), self._kept_parts()),
        ]
        lines += [f"  adapted     {key}: {how}" for key, how in self.adapted.items()]
        lines += [f"  note        {note}" for note in self.notes]
        return "\n".join(lines)

    def _kept_parts(self) -> list[str]:
        """The largest modules of the network of which no tensor was asked for: shortest names that say it."""
        named = {key for keys in (self.loaded, self.missing, self.mismatched) for key in keys}
        touched = {".".join(key.split(".")[:depth]) for key in named for depth in range(key.count(".") + 1)}
        parts = []
        for key in self.kept:
            names = key.split(".")
            shortest = next(depth for depth in range(1, len(names) + 1) if ".".join(names[:depth]) not in touched)
            parts.append(".".join(names[:shortest]))
        return list(dict.fromkeys(parts))


def _row(name: str, count: int, size: int, keys: list[str]) -> str:
    shown = ", ".join(keys[:_SHOWN]) + (f", and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else "")
    return f"  {name:<11} {count:>4} tensors {size / 1e6:>9.2f} MB  {shown}".rstrip()
