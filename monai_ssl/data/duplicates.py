# SPDX-License-Identifier: Apache-2.0
"""Images that are in a folder twice: the same pixels, or copies that were scaled, compressed or re-windowed."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from monai_ssl.data.scan import FACTS_SCHEMA
from monai_ssl.data.tables import require_columns
from monai_ssl.data.volume_scan import VOLUME_SCHEMA

_BLOCK = 1024


@dataclass(frozen=True)
class DuplicateReport:
    """Which rows of a table repeat which.

    Args:
        duplicate_of: (rows,) int64; the row that stands for this one, -1 for a row that is unique or stands for others.
        distance: (rows,) int64; 0 to 64 bits between the perceptual hashes, -1 for equal pixels and for kept rows.
        max_distance: largest distance that was looked for.
    """

    duplicate_of: np.ndarray
    distance: np.ndarray
    max_distance: int

    @property
    def kept(self) -> np.ndarray:
        """(rows,) bool: rows that are left when duplicates are dropped."""
        return self.duplicate_of < 0

    @property
    def num_exact(self) -> int:
        """Number of rows with the pixels of another row."""
        return int(((self.duplicate_of >= 0) & (self.distance < 0)).sum())

    @property
    def num_near(self) -> int:
        """Number of rows that look like another row."""
        return int((self.distance >= 0).sum())

    def groups(self) -> list[list[int]]:
        """Rows that belong together, the kept one first."""
        members = defaultdict(list)
        for row in np.flatnonzero(~self.kept):
            members[int(self.duplicate_of[row])].append(int(row))
        return [[kept, *rows] for kept, rows in sorted(members.items())]

    def disagreements(self, table: pa.Table, column: str) -> int:
        """Number of groups whose rows hold different values in a column (empty cells aside)."""
        require_columns(table, [column])
        values = table[column].to_pylist()
        return sum(len({values[row] for row in group if values[row] is not None}) > 1 for group in self.groups())

    def summary(self, table: pa.Table) -> str:
        """Say in two lines what was found, and how many groups span splits, patients or labels."""
        text = f"{self.num_exact} exact and {self.num_near} near duplicates among {len(self.duplicate_of)} images"
        spans = []
        for column in ("split", "group_id", "label"):
            if column in table.column_names and (count := self.disagreements(table, column)):
                spans.append(f"{count} with more than one {column}")
        if self.groups():
            text += f"\n  {len(self.groups())} groups" + (f", {', '.join(spans)}" if spans else "")
        return text


def find_duplicates(table: pa.Table, max_distance: int = 6) -> DuplicateReport:
    """Find images that repeat another one, exactly or nearly.

    Equal ``content_hash`` means equal pixels. Images whose ``perceptual_hash`` differs in at most ``max_distance`` of
    64 bits are near duplicates. Of images that repeat each other the one with the most cells filled in the user's
    columns is kept, else the first. Each duplicate is within the distance of the one that is kept, so chains of small
    differences do not add up. Refused rows are left alone.

    Pairs are found by banding: hashes within distance d agree in at least one of d + 1 bands of bits, so only images
    that share a band are compared; 100,000 images take seconds.

    Args:
        table: an index, with ``content_hash`` and, unless only exact duplicates are wanted, ``perceptual_hash``.
        max_distance: 0 to 16 bits, or -1 for exact duplicates only. See ``perceptual_hash`` for measured error rates.

    Raises:
        ValueError: if a column is missing or the distance is out of range.
    """
    if not -1 <= max_distance <= 16:
        raise ValueError(f"max_distance is {max_distance}; use -1 (exact only) or 0 to 16 bits")
    looks = ["perceptual_hash"] if max_distance >= 0 else []
    require_columns(table, ["content_hash", *looks], "the index")
    duplicate_of = np.full(len(table), -1, dtype=np.int64)
    distance = np.full(len(table), -1, dtype=np.int64)
    order = _by_preference(table)

    contents = table["content_hash"].to_pylist()
    first: dict[str, int] = {}
    for row in order:
        if contents[row] is not None and first.setdefault(contents[row], row) != row:
            duplicate_of[row] = first[contents[row]]

    hashes = table["perceptual_hash"].to_pylist() if looks else [None] * len(table)
    left = [row for row in order if hashes[row] is not None and contents[row] is not None and duplicate_of[row] < 0]
    if max_distance >= 0 and left:
        values = np.array([int(hashes[row], 16) for row in left], dtype=np.uint64)
        stands_for = _greedy(values, max_distance)
        moved = np.flatnonzero(stands_for >= 0)
        rows = np.asarray(left)
        duplicate_of[rows[moved]] = rows[stands_for[moved]]
        distance[rows[moved]] = bit_count(values[moved] ^ values[stands_for[moved]])
        # Exact copies of an image that turned out to be a near duplicate follow it.
        exact = np.flatnonzero((duplicate_of >= 0) & (distance < 0))
        parents = duplicate_of[exact]
        follows = duplicate_of[parents] >= 0
        distance[exact[follows]] = distance[parents[follows]]
        duplicate_of[exact[follows]] = duplicate_of[parents[follows]]
    return DuplicateReport(duplicate_of, distance, max_distance)


def drop_duplicates(table: pa.Table, max_distance: int = 6) -> tuple[pa.Table, DuplicateReport]:
    """Keep one image of each group of duplicates (see ``find_duplicates``); the report speaks of the rows given."""
    report = find_duplicates(table, max_distance)
    return table.filter(pa.array(report.kept)), report


def bit_count(values: np.ndarray) -> np.ndarray:
    """Number of set bits of each uint64."""
    if hasattr(np, "bitwise_count"):
        return np.bitwise_count(values).astype(np.int64)
    return np.unpackbits(values[..., None].view(np.uint8), axis=-1).sum(-1, dtype=np.int64)


def near_pairs(values: np.ndarray, max_distance: int) -> np.ndarray:
    """All pairs of distinct 64-bit values within a Hamming distance.

    Args:
        values: (N,) uint64, all different.
        max_distance: bits.

    Returns:
        (pairs, 2) positions, the smaller first, each pair once.
    """
    found = [np.empty((0, 2), dtype=np.int64)]
    edges = np.linspace(0, 64, max_distance + 2).astype(int)
    for low, high in pairwise(edges):
        band = (values >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(band, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(band[order]) != 0, True])
        for start, end in pairwise(starts):
            bucket = np.sort(order[start:end])
            for block in range(0, len(bucket) - 1, _BLOCK):
                mine = bucket[block : block + _BLOCK]
                others = bucket[block:]
                near = bit_count(values[mine][:, None] ^ values[others][None, :]) <= max_distance
                a, b = np.nonzero(np.triu(near, 1))
                found.append(np.stack([mine[a], others[b]], axis=1))
    return np.unique(np.concatenate(found), axis=0)


def _greedy(values: np.ndarray, max_distance: int) -> np.ndarray:
    """For hashes in order of preference: the position of the kept one that stands for each, -1 for the kept."""
    distinct, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    stands_for = first[inverse.ravel()]  # equal hashes: the most preferred of them
    stands_for[first] = -1
    neighbours: dict[int, list[int]] = defaultdict(list)
    for a, b in near_pairs(distinct, max_distance):
        x, y = sorted((int(first[a]), int(first[b])))
        neighbours[y].append(x)
    replaced: dict[int, int] = {}
    for position in sorted(neighbours):
        kept = [other for other in neighbours[position] if other not in replaced]
        if kept:
            closest = kept[int(np.argmin(bit_count(values[kept] ^ values[position])))]
            replaced[position] = stands_for[position] = closest
    # What an image that is itself replaced stood for now stands under its replacement, if that is near enough;
    # equal hashes always are.
    for position in np.flatnonzero(stands_for >= 0):
        parent = int(stands_for[position])
        if parent in replaced and position not in replaced:
            stands_for[position] = replaced[parent]
    return stands_for


def _by_preference(table: pa.Table) -> list[int]:
    """Usable rows, those with the most filled cells of the user's columns first."""
    own = {*FACTS_SCHEMA.names, *VOLUME_SCHEMA.names, "group_id"}
    filled = np.zeros(len(table), dtype=np.int64)
    for name in table.column_names:
        if name not in own:
            filled += table[name].is_valid().to_numpy(zero_copy_only=False)
    usable = np.ones(len(table), dtype=bool)
    if "status" in table.column_names:
        usable = np.array([status == "ok" for status in table["status"].to_pylist()], dtype=bool)
    rows = np.flatnonzero(usable)
    return rows[np.argsort(-filled[rows], kind="stable")].tolist()
