# SPDX-License-Identifier: Apache-2.0
"""The store: a folder of prepared images that is read fast, whole or in part, and knows what it holds."""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from monai_ssl.data.intensity import IntensityPolicy, policy_from_dict
from monai_ssl.data.items import Box, read_item
from monai_ssl.data.tables import read_table, require_columns

TABLE_NAME, FACTS_NAME = "store.parquet", "store.json"
# Columns that preparing adds to the index. store_item: path of the item below the store.
STORE_SCHEMA = pa.schema(
    [
        ("store_item", pa.string()),
        ("store_shape", pa.list_(pa.int32())),
        ("store_dtype", pa.string()),
        ("store_levels", pa.int32()),
        ("store_limits", pa.list_(pa.float64())),
        ("store_spacing_mm", pa.list_(pa.float64())),
        ("store_bytes", pa.int64()),
    ]
)


class ImageStore:
    """Images that ``prepare_store`` made: one Blosc2 file an image, a table, and the recipe they were made by.

    Reading needs no lock and no open handles; a store may be used by any number of workers and processes at once.

    Args:
        store_dir: the folder.

    Attributes:
        table: one row an image, in the order of the index: its columns, the user's and those of ``STORE_SCHEMA``.
        refused: the rows that hold no image, with their ``reason``.
        recipe: how the images were made: format, max_side, policy, reader.

    Raises:
        FileNotFoundError: if there is no finished store.
        ValueError: if its files do not belong together.
    """

    def __init__(self, store_dir: str | Path):
        self.folder = Path(store_dir)
        facts = read_facts(self.folder)
        if facts is None or not (self.folder / TABLE_NAME).is_file():
            raise FileNotFoundError(
                f"{self.folder}: no finished store; run prepare (again), it goes on where it stopped"
            )
        table = read_table(self.folder / TABLE_NAME)
        require_columns(table, ["status", *STORE_SCHEMA.names], f"{self.folder / TABLE_NAME}")
        if (table.schema.metadata or {}).get(b"recipe_id", b"").decode() != facts["recipe_id"]:
            raise ValueError(f"{self.folder}: its table and {FACTS_NAME} come from different runs; run prepare again")
        usable = pc.equal(table["status"], "ok")
        self.recipe: dict[str, Any] = facts["recipe"]
        self.table: pa.Table = table.filter(usable)
        self.refused: pa.Table = table.filter(pc.invert(usable))
        self._items = self.table["store_item"].to_pylist()
        self._shapes = [tuple(shape) for shape in self.table["store_shape"].to_pylist()]
        self._levels = self.table["store_levels"].to_numpy().astype(np.float32)

    def __len__(self) -> int:
        """Number of images."""
        return len(self._items)

    @property
    def policy(self) -> IntensityPolicy:
        """The intensity policy of the images."""
        return policy_from_dict(self.recipe["policy"])

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return len(self._shapes[0])

    def shape(self, i: int) -> tuple[int, ...]:
        """Shape of image ``i``: (rows, columns) or (depth, rows, columns)."""
        return self._shapes[i]

    def levels(self, i: int) -> np.float32:
        """Stored value of image ``i`` that means 1."""
        return self._levels[i]

    def dtype(self, i: int) -> np.dtype:
        """Stored type of image ``i``."""
        return np.dtype(self.table["store_dtype"][i].as_py())

    def read(self, i: int, box: Box | None = None) -> np.ndarray:
        """Read an image, or a part of it.

        Args:
            i: row of ``table``.
            box: for each axis a slice or a pair (start, stop); only the blocks it touches are read and decompressed.

        Returns:
            float32 in [0, 1], of the shape of the image or the box.

        Raises:
            IndexError: if there is no such row.
            ValueError: if the box is empty or reaches over the edge.
            FileNotFoundError, RuntimeError: if the item is missing or damaged.
        """
        return np.divide(self.read_stored(i, box), self._levels[i], dtype=np.float32)

    def read_stored(self, i: int, box: Box | None = None) -> np.ndarray:
        """Read an image or a part of it in its stored type; its value in [0, 1] is this divided by ``levels(i)``."""
        return read_item(self.folder / self._items[i], box)

    def describe(self) -> str:
        """Say in a few lines what the store holds and how it was made."""
        stored, source = (pc.sum(self.table[name]).as_py() for name in ("store_bytes", "bytes"))
        sides = np.array(self._shapes)
        types = collections.Counter(self.table["store_dtype"].to_pylist())
        policy = self.recipe["policy"]
        lines = [
            f"{self.folder}: {len(self)} images, {len(self.refused)} refused, {megabytes(stored)}"
            + (f" ({stored / source:.2f} of the sources' {megabytes(source)})" if source else ""),
            f"  sizes: {' x '.join(map(str, sides.min(0)))} to {' x '.join(map(str, sides.max(0)))}"
            f" (longest side at most {self.recipe['max_side']}), "
            + ", ".join(f"{count} {name}" for name, count in types.most_common()),
            f"  intensity: {policy['name']} ({policy['citation']})",
        ]
        reasons = collections.Counter(reason.partition(":")[0] for reason in self.refused["reason"].to_pylist())
        lines += [f"  refused {count}: {reason}" for reason, count in reasons.most_common(12)]
        return "\n".join(lines)


def read_facts(folder: Path) -> dict[str, Any] | None:
    """Read ``store.json``, or None if there is none.

    Raises:
        ValueError: if it is no such file.
    """
    path = Path(folder) / FACTS_NAME
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return {"recipe_id": facts["recipe_id"], "recipe": facts["recipe"]}
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged; delete it and run prepare again, the images are kept") from error


def megabytes(count: int) -> str:
    """Bytes for people.

    >>> megabytes(3_400_000)
    '3.4 MB'
    """
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"
