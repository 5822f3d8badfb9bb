# SPDX-License-Identifier: Apache-2.0
"""What lies between the index of a folder and its store: refused rows counted, duplicates set aside, splits dealt."""

from __future__ import annotations

import collections
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from monai_ssl.data.duplicates import find_duplicates
from monai_ssl.data.files import folder_lock, is_disk_full, write_whole
from monai_ssl.data.splits import assign_splits

logger = logging.getLogger(__name__)


@contextmanager
def held_cache(cache_dir: str | Path) -> Iterator[None]:
    """Make a cache folder and hold it for this process; others wait until it is free.

    Raises:
        RuntimeError: if the disk runs full inside.
    """
    cache_dir = Path(cache_dir)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with folder_lock(cache_dir, lambda: logger.info("%s: another process prepares it; waiting", cache_dir)):
            yield
    except OSError as error:
        if is_disk_full(error):
            raise RuntimeError(f"{cache_dir}: the disk is full; free some space and run the same again") from error
        raise


def split_once(index: pa.Table, file: Path, fractions: Mapping[str, float] | None, seed: int) -> pa.Table:
    """Deal splits where the user gave none to train on, and keep those that were dealt before by the same rule.

    Rows to which the user gave a split keep it. If any of them is in ``"train"``, nothing is dealt: rows without a
    split stay without.

    Args:
        index: with ``group_id``, ``path`` and ``content_hash``, perhaps ``split``.
        file: JSON file that remembers the splits.
        fractions, seed: see ``assign_splits``.

    Raises:
        ValueError: if the file is damaged, or a group has two splits.
    """
    given = index["split"].to_pylist() if "split" in index.column_names else [None] * len(index)
    if "train" in given:
        return index
    rule = {"seed": seed, "fractions": None if fractions is None else dict(fractions)}
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        before = known["groups"] if known["rule"] == rule else {}
    except FileNotFoundError:
        before = {}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged; restore it, or delete it to have new splits made") from error
    groups = index["group_id"].to_pylist()
    mine = {group: split for group, split in zip(groups, given, strict=True) if split is not None}
    splits = [own or mine.get(group) or before.get(group) for own, group in zip(given, groups, strict=True)]
    column = pa.array(splits, pa.string())
    index = index.drop_columns(["split"]) if "split" in index.column_names else index
    index = assign_splits(index.append_column("split", column), fractions, seed, allow_empty=True)
    dealt = dict(zip(groups, index["split"].to_pylist(), strict=True))
    after = before | {group: split for group, split in dealt.items() if group not in mine}
    if after != before:
        write_whole(file, json.dumps({"rule": rule, "groups": after}, indent=1).encode())
    return index


def refuse_duplicates(table: pa.Table, max_distance: int = 6, what: str = "pixels") -> pa.Table:
    """Turn images that repeat another one into refused rows that name it.

    Args:
        table, max_distance: see ``find_duplicates``.
        what: what exact copies have in common, for the reason.
    """
    report = find_duplicates(table, max_distance)
    if report.kept.all():
        return table
    logger.info(report.summary(table))
    paths = table["path"].to_pylist()
    columns = {name: table[name].to_pylist() for name in ("status", "reason")}
    for row, (other, distance) in enumerate(zip(report.duplicate_of, report.distance, strict=True)):
        if other >= 0:
            likeness = f"has the same {what} as" if distance < 0 else "looks like"
            columns["status"][row] = "refused"
            columns["reason"][row] = f"duplicate: {likeness} {paths[other]}"
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.string()))
    return table


def check_refused(index: pa.Table, folder: str | Path, limit: float, what: str = "image files") -> None:
    """Raise if more than a share of the rows of an index is refused, with the reasons and some of the files.

    Raises:
        RuntimeError: naming the most frequent reasons.
    """
    refused = index.filter(pc.equal(index["status"], "refused"))
    if len(refused) == len(index) or len(refused) > limit * len(index):
        reasons = collections.Counter(refused["reason"].to_pylist()).most_common(4)
        raise RuntimeError(
            f"{folder}: {len(refused)} of {len(index)} {what} cannot be used (allowed: {limit:.0%}): "
            + "; ".join(f"{count} x {reason}" for reason, count in reasons)
            + f". For instance {', '.join(refused['path'].to_pylist()[:3])}. "
            "Check the folder, or raise max_refused_fraction"
        )
