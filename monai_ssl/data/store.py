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
# Columns that preparing volumes adds to these. A box is start and stop of D, H and W; points are label, d, h, w, again
# and again.
VOLUME_STORE_SCHEMA = pa.schema(
    [
        ("store_affine", pa.list_(pa.float64())),
        ("store_foreground", pa.list_(pa.int32())),
        ("store_source_shape", pa.list_(pa.int32())),
        ("store_source_affine", pa.list_(pa.float64())),
        ("store_label_item", pa.string()),
        ("store_label_values", pa.list_(pa.int32())),
        ("store_label_points", pa.list_(pa.int32())),
    ]
)


class ImageStore:
    """Images that ``prepare_store`` or ``prepare_volumes`` made: a Blosc2 file an image, a table, and their recipe.

    Reading needs no lock and no open handles; a store may be used by any number of workers and processes at once.

    Args:
        store_dir: the folder.

    Attributes:
        table: one row an image, in the order of the index: its columns, the user's, those of ``STORE_SCHEMA`` and, for
            volumes, those of ``VOLUME_STORE_SCHEMA``.
        refused: the rows that hold no image, with their ``reason``.
        recipe: how the images were made: format, policy, reader; of radiographs max_side, of volumes orientation,
            spacing_mm and crop_foreground.
        has_volumes: whether ``prepare_volumes`` made it; the methods that speak of volumes need it.

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
        self.has_volumes = "store_affine" in self.table.column_names
        if self.has_volumes:
            require_columns(table, VOLUME_STORE_SCHEMA.names, f"{self.folder / TABLE_NAME}")
        self._label_items = self.table["store_label_item"].to_pylist() if self.has_volumes else [None] * len(self)

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

    def affine(self, i: int) -> np.ndarray:
        """Affine of volume ``i``: (4, 4) float64, stored voxel (d, h, w, 1) to RAS mm, at voxel centres.

        Raises:
            ValueError: if this is no store of volumes.
        """
        return np.array(self._of_volume("store_affine", i), dtype=np.float64).reshape(4, 4)

    def spacing_mm(self, i: int) -> tuple[float, ...] | None:
        """Distance of neighbouring stored voxels of image ``i`` along each array axis in mm; None if not known."""
        spacing = self.table["store_spacing_mm"][i].as_py()
        return None if spacing is None else tuple(spacing)

    def foreground(self, i: int) -> tuple[slice, slice, slice]:
        """Box of the body in volume ``i``: a slice for each array axis.

        Raises:
            ValueError: if this is no store of volumes.
        """
        ends = self._of_volume("store_foreground", i)
        return tuple(slice(start, stop) for start, stop in zip(ends[::2], ends[1::2], strict=True))

    def source_grid(self, i: int) -> tuple[tuple[int, ...], np.ndarray]:
        """Grid of the source of volume ``i``, in its own order of (D, H, W): its shape, and its affine to RAS mm.

        Raises:
            ValueError: if this is no store of volumes.
        """
        affine = np.array(self._of_volume("store_source_affine", i), dtype=np.float64).reshape(4, 4)
        return tuple(self._of_volume("store_source_shape", i)), affine

    def has_label_map(self, i: int) -> bool:
        """Whether image ``i`` has a label map."""
        return self._label_items[i] is not None

    def label_values(self, i: int) -> list[int]:
        """Labels that occur in the label map of volume ``i``, with 0 (background), ascending; empty without one."""
        return (self._of_volume("store_label_values", i) or []) if self.has_label_map(i) else []

    def label_points(self, i: int) -> np.ndarray:
        """Voxels of every label of volume ``i`` but 0, chosen by chance: (n, 4) int32, label and place (d, h, w)."""
        points = self._of_volume("store_label_points", i) if self.has_label_map(i) else None
        return np.array(points or [], dtype=np.int32).reshape(-1, 4)

    def read_label_map(self, i: int, box: Box | None = None) -> np.ndarray:
        """Read the label map of a volume, or a part of it.

        Args:
            i: row of ``table``.
            box: see ``read``.

        Returns:
            uint8, of the shape of the volume or the box.

        Raises:
            IndexError: if there is no such row.
            ValueError: if it has no label map, or the box is empty or reaches over the edge.
            FileNotFoundError, RuntimeError: if the item is missing or damaged.
        """
        item = self._label_items[i]
        if item is None:
            raise ValueError(f"{self.folder}: row {i} has no label map; has_label_map(i) tells")
        return read_item(self.folder / item, box)

    def _of_volume(self, column: str, i: int) -> Any:
        if not self.has_volumes:
            raise ValueError(f"{self.folder} is no store of volumes; prepare_volumes makes one")
        return self.table[column][i].as_py()

    def describe(self) -> str:
        """Say in a few lines what the store holds and how it was made."""
        stored, source = (pc.sum(self.table[name]).as_py() for name in ("store_bytes", "bytes"))
        sides = np.array(self._shapes)
        types = collections.Counter(self.table["store_dtype"].to_pylist())
        policy = self.recipe["policy"]
        limit = "" if self.has_volumes else f" (longest side at most {self.recipe['max_side']})"
        noun = "volumes" if self.has_volumes else "images"
        lines = [
            f"{self.folder}: {len(self)} {noun}, {len(self.refused)} refused, {megabytes(stored)}"
            + (f" ({stored / source:.2f} of the sources' {megabytes(source)})" if source else ""),
            f"  sizes: {_range(sides, 'd', both=True)}{limit}, "
            + ", ".join(f"{count} {name}" for name, count in types.most_common()),
            f"  intensity: {policy['name']} ({policy['citation']})",
        ]
        if self.has_volumes:
            lines[2:2] = self._describe_grids()
        reasons = collections.Counter(reason.partition(":")[0] for reason in self.refused["reason"].to_pylist())
        lines += [f"  refused {count}: {reason}" for reason, count in reasons.most_common(12)]
        return "\n".join(lines)

    def _describe_grids(self) -> list[str]:
        """Lines on spacing, orientation and label maps."""
        spacing = np.array(self.table["store_spacing_mm"].to_pylist())
        turned = self.recipe["orientation"] or "each volume's own"
        wanted = "each volume's own" if self.recipe["spacing_mm"] is None else "resampled"
        lines = [f"  spacing: {_range(spacing, '.3g')} mm ({wanted}), orientation {turned}"]
        labelled = sum(item is not None for item in self._label_items)
        if labelled:
            values = sorted({value for i in range(len(self)) for value in self.label_values(i)})
            shown = ", ".join(map(str, values[:12])) + (" ..." if len(values) > 12 else "")
            lines.append(f"  label maps: {labelled}, values {shown}")
        return lines


def store_in(folder: Path) -> ImageStore | None:
    """The prepared store that a folder is or holds."""
    for place in (folder, folder / "store"):
        if (place / FACTS_NAME).is_file():
            return ImageStore(place)
    return None


def _range(rows: np.ndarray, form: str, both: bool = False) -> str:
    """Least and greatest of each column: ``"1 x 2 to 3 x 4"``; where they are equal, ``both`` still gives both."""
    ends = [" x ".join(format(value, form) for value in row) for row in (rows.min(0), rows.max(0))]
    return ends[0] if ends[0] == ends[1] and not both else " to ".join(ends)


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
