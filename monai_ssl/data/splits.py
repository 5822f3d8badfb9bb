# SPDX-License-Identifier: Apache-2.0
"""Splits by patient, proofs that two tables share nothing, and files that say which images a split holds."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from monai_ssl.data.duplicates import bit_count
from monai_ssl.data.files import write_whole
from monai_ssl.data.tables import require_columns

logger = logging.getLogger(__name__)

_FORMAT = "monai_ssl.split/1"


def assign_splits(
    table: pa.Table,
    fractions: Mapping[str, float] | None = None,
    seed: int = 0,
    group: str = "group_id",
    allow_empty: bool = False,
) -> pa.Table:
    """Give each group of images (patient) a split by hashing its images.

    The draw depends on the seed and on the content hashes of the group (the smallest counts), not on the salted
    identifiers: every index of the same folder gets the same splits, whatever its salt. Images that have a split keep
    it, and so do the other images of their group; so a patient whose images become more need not move.

    Args:
        table: an index or a store's table.
        fractions: share of the groups for each split. Default: 0.7 train, 0.1 val, 0.2 test.
        seed: another seed gives another split.
        group: column of the groups that must not be parted; an image without one stands alone.
        allow_empty: warn, rather than raise, if a split holds no usable image.

    Returns:
        The table with the column ``split``.

    Raises:
        ValueError: if a column is missing, the fractions do not add up to 1, a group is in two splits already, or a
            split would be empty.
    """
    fractions = {"train": 0.7, "val": 0.1, "test": 0.2} if fractions is None else dict(fractions)
    if min(fractions.values(), default=0) <= 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise ValueError(f"the fractions {fractions} must be above 0 and add up to 1")
    require_columns(table, [group, "path", "content_hash"])
    groups = [
        ("path", path) if name is None else name
        for name, path in zip(table[group].to_pylist(), table["path"].to_pylist(), strict=True)
    ]
    given = table["split"].to_pylist() if "split" in table.column_names else [None] * len(table)
    fixed: dict[Any, str] = {}
    content: dict[Any, str] = {}
    for name, split, path, pixels in zip(
        groups, given, table["path"].to_pylist(), table["content_hash"].to_pylist(), strict=True
    ):
        if split is not None and fixed.setdefault(name, split) != split:
            raise ValueError(f"images of one {group} are in the splits {fixed[name]!r} and {split!r}; mend the table")
        key = f"path {path}" if pixels is None else pixels  # "path ..." sorts after all hexadecimal digits
        content[name] = min(content.get(name, key), key)
    splits = [fixed.get(name) or _draw(content[name], fractions, seed) for name in groups]
    present = {split for split, usable in zip(splits, _usable(table), strict=True) if usable}
    empty = [name for name in fractions if name not in present]
    if empty:
        text = f"no image falls into the split {', '.join(empty)}: {len(content)} groups are too few for {fractions}; "
        text += "use another seed or larger fractions, or give a column 'split'"
        if not allow_empty:
            raise ValueError(text)
        logger.warning(text)
    column = pa.array(splits, pa.string())
    if "split" in table.column_names:
        return table.set_column(table.schema.get_field_index("split"), "split", column)
    return table.append_column("split", column)


def split_rows(table: pa.Table, split: str) -> np.ndarray:
    """Row numbers of the usable images of a split.

    Raises:
        ValueError: if there is no column ``split``, or no image in this one.
    """
    require_columns(table, ["split"])
    column = np.array(table["split"].to_pylist(), dtype=object)
    rows = np.flatnonzero((column == split) & _usable(table))
    if not len(rows):
        present = sorted({name for name in column if name is not None})
        raise ValueError(f"no image is in the split {split!r}; there are: {', '.join(present) or 'none'}")
    return rows


def assert_classes(table: pa.Table, label: str, splits: Sequence[str], classes: Sequence[str] | None = None) -> None:
    """Raise unless each split holds at least one image of each class.

    Args:
        table: with the columns ``split`` and ``label``.
        label: name of the label column.
        splits: splits to look at.
        classes: classes to look for. Default: all that occur in the table.

    Raises:
        ValueError: naming the split and the classes it lacks.
    """
    require_columns(table, [label])
    values = np.array(table[label].to_pylist(), dtype=object)
    wanted = sorted({value for value in values if value is not None}) if classes is None else list(classes)
    for split in splits:
        present = set(values[split_rows(table, split)])
        missing = [str(value) for value in wanted if value not in present]
        if missing:
            raise ValueError(
                f"the split {split!r} has no image of {label} {', '.join(missing)}; it has "
                f"{', '.join(sorted(str(value) for value in present - {None}))}. Leave the class out or split anew"
            )


def assert_disjoint(
    a: pa.Table,
    b: pa.Table,
    by: Sequence[str] = ("group_id", "content_hash"),
    max_distance: int = 0,
) -> None:
    """Raise if two tables share a patient or an image. Refused rows do not count.

    Args:
        a: a table, for instance the images for pretraining.
        b: another one, for instance the test split.
        by: columns that must have no value in common. ``perceptual_hash`` is compared by its bits.
        max_distance: number of bits up to which two perceptual hashes are the same image.

    Raises:
        ValueError: if a column is missing or empty everywhere, or if something is shared: what, how often, and for
            up to three images where.
    """
    for name in by:
        sides = []
        for table, which in ((a, "the first table"), (b, "the second table")):
            require_columns(table, [name, "path"], which)
            kept = _usable(table)
            values = [v for v, keep in zip(table[name].to_pylist(), kept, strict=True) if keep]
            paths = [p for p, keep in zip(table["path"].to_pylist(), kept, strict=True) if keep]
            if all(value is None for value in values):
                raise ValueError(f"{which} has no value in the column {name!r}, so nothing can be told by it")
            sides.append([(value, path) for value, path in zip(values, paths, strict=True) if value is not None])
        shared = _near(*sides, max_distance) if name == "perceptual_hash" else _equal(*sides)
        if shared:
            pairs = "; ".join(f"{path} and {other}" for path, other in shared[:3])
            raise ValueError(f"the tables are not disjoint by {name}: {len(shared)} images of the second, e.g. {pairs}")


def save_split(path: str | Path, table: pa.Table, subsets: Mapping[Any, Sequence[int]], **facts: Any) -> str:
    """Write which images belong to which subset, as JSON with its own hash.

    Images are written by path and content, so the file holds for a table that is sorted or filtered otherwise.

    Args:
        path: the file.
        table: the table that the row numbers are of.
        subsets: names (turned to text) and row numbers.
        facts: further JSON values to note, for instance the seed.

    Returns:
        The hash: 64 hexadecimal digits, for results that must say which split they are from.
    """
    require_columns(table, ["path", "content_hash"])
    names, contents = table["path"].to_pylist(), table["content_hash"].to_pylist()
    body = {
        "format": _FORMAT,
        "facts": facts,
        "subsets": {str(key): [[names[row], contents[row]] for row in rows] for key, rows in subsets.items()},
    }
    digest = _digest(body)
    write_whole(path, json.dumps({**body, "hash": digest}, indent=1).encode())
    return digest


def load_split(path: str | Path, table: pa.Table) -> dict[str, np.ndarray]:
    """Read a split file and find its images in a table.

    Returns:
        Row numbers for each subset, in the order of the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it was changed after it was written, or an image is missing or has other pixels now.
    """
    path = Path(path)
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        written = body.pop("hash")
        subsets = body["subsets"]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such split file") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a split file") from error
    if body.get("format") != _FORMAT or written != _digest(body):
        raise ValueError(f"{path} was changed after it was written, or is of another version; make the split again")
    require_columns(table, ["path", "content_hash"])
    contents = table["content_hash"].to_pylist()
    by_path = {name: row for row, name in enumerate(table["path"].to_pylist())}
    by_content = {content: row for row, content in reversed(list(enumerate(contents)))}
    found, missing = {}, []
    for key, entries in subsets.items():
        rows = []
        for name, content in entries:
            row = by_path.get(name)
            row = row if row is not None and contents[row] == content else by_content.get(content)
            rows.append(-1 if row is None else row)
            if row is None:
                missing.append(name)
        found[key] = np.array(rows, dtype=np.int64)
    if missing:
        raise ValueError(
            f"{path}: {len(missing)} of its images are not in the table or have other pixels, e.g. "
            f"{', '.join(missing[:3])}; use the data it was made for, or make the split again"
        )
    return found


def _draw(name: str, fractions: Mapping[str, float], seed: int) -> str:
    digest = hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest()
    draw = int.from_bytes(digest, "big") / 2**64
    for split, share in fractions.items():
        draw -= share
        if draw < 0:
            return split
    return split


def _usable(table: pa.Table) -> np.ndarray:
    if "status" not in table.column_names:
        return np.ones(len(table), dtype=bool)
    return np.array([status == "ok" for status in table["status"].to_pylist()], dtype=bool)


def _equal(a: list[tuple[str, str]], b: list[tuple[str, str]]) -> list[tuple[str, str]]:
    where = dict(reversed(a))
    return [(where[value], path) for value, path in b if value in where]


def _near(a: list[tuple[str, str]], b: list[tuple[str, str]], max_distance: int) -> list[tuple[str, str]]:
    mine = np.array([int(value, 16) for value, _ in a], dtype=np.uint64)
    shared = []
    for value, path in b:
        distance = bit_count(mine ^ np.uint64(int(value, 16)))
        closest = int(distance.argmin())
        if distance[closest] <= max_distance:
            shared.append((a[closest][1], path))
    return shared


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
