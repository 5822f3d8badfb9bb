# SPDX-License-Identifier: Apache-2.0
"""Items and batches from a store: plain float32 tensors, padded to a common canvas, with the extent of each image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import Dataset, get_worker_info

from monai_ssl.data.cache import SharedImageCache
from monai_ssl.data.labels import some_values
from monai_ssl.data.store import ImageStore
from monai_ssl.data.tables import require_columns

# Entries of an item that have the image's shape and are padded with it, and the type of their canvas.
PADDED_KEYS = {"image": torch.float32, "label_map": torch.uint8, "valid": torch.bool}
_NUMPY_TYPES = {torch.float32: np.float32, torch.uint8: np.uint8, torch.bool: np.bool_}


class PaddedItems(list):
    """Items whose images are views of one padded canvas; ``PadCollate`` takes the canvas as it is.

    Args:
        items: the items.
        canvases: for ``"image"``, and ``"label_map"`` if the items have one, (B, 1, *spatial), zero outside the images.
        extent: int64 (B, spatial dims), the size of each image.
    """

    def __init__(self, items: list[dict[str, Any]], canvases: dict[str, torch.Tensor], extent: torch.Tensor):
        super().__init__(items)
        self.canvases = canvases
        self.extent = extent


class StoreDataset(Dataset):
    """Images of a store as items ``{"image": (1, *spatial) float32 in [0, 1], "index": int, ...labels}``.

    ``index`` is the row of ``store.table``. Nothing is random here, so the items do not depend on the workers.
    A label of text becomes the number of its class, -1 if it is missing or no class; numbers stay numbers, a missing
    float is NaN.

    Args:
        store: the store.
        rows: rows of ``store.table`` to use, or a mask of booleans. None: all.
        label_columns: columns to give with each item, or a mapping from columns of text to their classes in order.
            Default classes: the sorted values of the whole store, so that all splits number them alike.
        cache: ``"none"``: decompress each time (0.5 ms for 512 x 512); ``"memory"``: keep the decoded images in their
            stored type in memory that all workers share.
        labelled_rows: rows of ``store.table`` whose labels are given, or a mask; the labels of all others are hidden
            (-1, or NaN), as if nobody had made them. They may lie outside ``rows``. Hybrid pretraining with a share of
            the labels takes the ``rows["train"]`` that :func:`monai_ssl.evaluation.classification_labels` chose for
            that ``label_fraction`` and seed: the very labels that fine-tuning gets. Each item then has ``"labelled"``
            too, 1 or 0. None: all labels are given; empty: none is.
        positives: a number for each item, equal for images that are positives of one another, from
            ``positive_groups``; items have it as ``"positive_id"``.

    Attributes:
        classes: for each label column of text its classes; the label is the position.
        labels: for each label column a tensor with one entry (or one row) an item.

    Raises:
        ValueError: if rows, columns or classes are wrong, or the cache does not fit into memory.
    """

    def __init__(
        self,
        store: ImageStore,
        rows: Sequence[int] | np.ndarray | None = None,
        label_columns: Sequence[str] | Mapping[str, Sequence[str] | None] | None = None,
        cache: str = "none",
        positives: Sequence[int] | np.ndarray | None = None,
        labelled_rows: Sequence[int] | np.ndarray | None = None,
    ):
        if cache not in ("none", "memory"):
            raise ValueError(f'cache is {cache!r}; use "none" or "memory"')
        self.store = store
        self.rows = row_numbers(rows, len(store))
        self.shows_labels: np.ndarray | None = None
        if labelled_rows is not None:
            known = row_numbers(labelled_rows, len(store), "labelled_rows") if np.any(np.shape(labelled_rows)) else []
            self.shows_labels = np.isin(self.rows, known)
        self.classes: dict[str, list[str]] = {}
        self.labels: dict[str, torch.Tensor] = {}
        columns = [label_columns] if isinstance(label_columns, str) else label_columns or []
        for name in columns:
            classes = columns[name] if isinstance(columns, Mapping) else None
            self._add_labels(name, classes)
        if self.shows_labels is not None:
            self._hide_labels(torch.from_numpy(~self.shows_labels))
        if positives is not None:
            self._add_positives(positives)
        shapes = [store.shape(row) for row in self.rows]
        self._cache = SharedImageCache(shapes, [store.dtype(row) for row in self.rows]) if cache == "memory" else None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.__getitems__([i])[0]

    def __getitems__(self, indices: Sequence[int]) -> PaddedItems:
        """Fetch a batch at once: the images are written into one canvas, which ``PadCollate`` needs not copy."""
        rows = [int(self.rows[i]) for i in indices]
        shapes = np.array([self.store.shape(row) for row in rows], dtype=np.int64)
        canvas = new_canvas((len(rows), 1, *shapes.max(axis=0).tolist()))
        items = []
        for place, (i, row) in enumerate(zip(indices, rows, strict=True)):
            image = corner(canvas[place, 0].numpy(), shapes[place], clear=True)
            np.divide(self._stored(int(i), row), self.store.levels(row), out=image, dtype=np.float32)
            items.append({"image": torch.from_numpy(image)[None], "index": row, **self._labels_of(i)})
        return PaddedItems(items, {"image": canvas}, torch.from_numpy(shapes))

    def _labels_of(self, i: int) -> dict[str, int | float | torch.Tensor]:
        return {
            name: values[i].item() if values.ndim == 1 else values[i].clone() for name, values in self.labels.items()
        }

    def _hide_labels(self, hidden: torch.Tensor) -> None:
        for values in self.labels.values():
            values[hidden] = float("nan") if values.is_floating_point() else -1
        if "labelled" in self.labels:
            raise ValueError("a label column cannot be called 'labelled' beside labelled_rows; rename the column")
        self.labels["labelled"] = (~hidden).long()

    def _stored(self, i: int, row: int) -> np.ndarray:
        if self._cache is None:
            return self.store.read_stored(row)
        i %= len(self.rows)
        image = self._cache.get(i)
        if image is None:
            image = self.store.read_stored(row)
            self._cache.put(i, image)
        return image

    def _add_positives(self, positives: Sequence[int] | np.ndarray) -> None:
        numbers = np.asarray(positives)
        if numbers.shape != self.rows.shape or not np.issubdtype(numbers.dtype, np.integer):
            raise ValueError(
                f"positives must be one integer for each of {len(self.rows)} items, got {numbers.dtype} "
                f"{numbers.shape}; positive_groups(store, rows) gives them for the same rows"
            )
        if "positive_id" in self.labels:
            raise ValueError("the items' 'positive_id' is asked for as a label column and as positives; use one")
        self.labels["positive_id"] = torch.from_numpy(numbers.astype(np.int64))

    def _add_labels(self, name: str, classes: Sequence[str] | None) -> None:
        if name in (*PADDED_KEYS, "index", "extent"):
            raise ValueError(f"a label column cannot be called {name!r}: the batch uses that name; rename the column")
        require_columns(self.store.table, [name], f"the table of {self.store.folder}")
        column = self.store.table[name]
        kind = column.type
        if pa.types.is_dictionary(kind):
            column = column.cast(kind.value_type)
            kind = column.type
        values = column.to_pylist()
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            present = sorted({value for value in values if value is not None})
            self.classes[name] = present if classes is None else list(classes)
            if not self.classes[name] or len(set(self.classes[name])) < len(self.classes[name]):
                raise ValueError(f"the column {name!r} has no classes, or one twice: {self.classes[name]}")
            number = {value: place for place, value in enumerate(self.classes[name])}
            missing = [value for value in number if value not in present]
            if missing:
                raise ValueError(f"the classes {missing} are nowhere in the column {name!r}{some_values(present)}")
            self.labels[name] = torch.tensor([number.get(values[row], -1) for row in self.rows], dtype=torch.int64)
        elif classes is not None:
            raise ValueError(f"classes were given for the column {name!r}, but it holds {kind}, not text")
        elif pa.types.is_boolean(kind) or pa.types.is_integer(kind):
            whole = [-1 if values[row] is None else int(values[row]) for row in self.rows]
            self.labels[name] = torch.tensor(whole, dtype=torch.int64)
        elif pa.types.is_floating(kind):
            real = [float("nan") if values[row] is None else values[row] for row in self.rows]
            self.labels[name] = torch.tensor(real, dtype=torch.float32)
        else:
            raise ValueError(f"the column {name!r} holds {kind}; labels are text, numbers or true/false")


class PadCollate:
    """Collate items of different sizes: images go to the origin corner of a zero canvas as large as the largest.

    Returns ``{"image": (B, C, *spatial) float32, "extent": (B, spatial dims) int64, ...}``; a ``label_map``
    (1, *spatial) uint8 and ``valid`` (1, *spatial) bool are padded with 0 as their image is. Numbers become tensors
    (int64, float32), other tensors are stacked, anything else stays a list.
    """

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Make a batch.

        Raises:
            ValueError: if the images differ in channels or dimensions, or a label map in size from its image.
        """
        if isinstance(items, PaddedItems):
            batch: dict[str, Any] = {**items.canvases, "extent": items.extent}
        else:
            batch = {key: _padded(items, key) for key in PADDED_KEYS if key in items[0]}
            batch["extent"] = torch.tensor([item["image"].shape[1:] for item in items], dtype=torch.int64)
        for key in items[0]:
            if key not in PADDED_KEYS:
                batch[key] = _collate_values([item[key] for item in items])
        return batch


def _padded(items: Sequence[Mapping[str, Any]], key: str) -> torch.Tensor:
    """Put one entry of all items on a canvas."""
    parts = [torch.as_tensor(item[key], dtype=PADDED_KEYS[key]) for item in items]
    if len({(part.ndim, part.shape[0]) for part in parts}) > 1:
        raise ValueError(f"images of one batch differ in channels: {[tuple(part.shape) for part in parts]}")
    for part, item in zip(parts, items, strict=True):
        if part.shape[1:] != item["image"].shape[1:]:
            raise ValueError(f"the {key} of an item is {tuple(part.shape)}, its image {tuple(item['image'].shape)}")
    sides = torch.tensor([part.shape[1:] for part in parts]).amax(dim=0).tolist()
    canvas = new_canvas((len(parts), parts[0].shape[0], *sides), PADDED_KEYS[key])
    for place, part in zip(canvas, parts, strict=True):
        for channel, values in zip(place, part, strict=True):
            corner(channel.numpy(), part.shape[1:], clear=True)[...] = values.numpy()
    return canvas


def corner(canvas: np.ndarray, shape: Sequence[int], clear: bool = False) -> np.ndarray:
    """View of the part of a canvas that an image takes; with ``clear`` the rest is set to zero."""
    inside = tuple(slice(0, int(side)) for side in shape)
    if clear:
        for axis, side in enumerate(inside):
            canvas[inside[:axis] + (slice(side.stop, None),)] = 0
    return canvas[inside]


def _collate_values(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, torch.Tensor):
        return torch.stack([torch.as_tensor(value) for value in values])
    if isinstance(first, (bool, int, np.integer)):
        return torch.tensor(values, dtype=torch.int64)
    if isinstance(first, (float, np.floating)):
        return torch.tensor(values, dtype=torch.float32)
    return list(values)


def new_canvas(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Uninitialised tensor; in a loader worker in shared memory, so that handing it over copies nothing."""
    if get_worker_info() is None:
        # NumPy asks the kernel for large pages, which makes fresh megabytes four times cheaper than torch.empty.
        return torch.from_numpy(np.empty(shape, dtype=_NUMPY_TYPES[dtype]))
    storage = torch.UntypedStorage._new_shared(int(np.prod(shape)) * dtype.itemsize)
    return torch.empty(0, dtype=dtype).set_(storage, 0, shape, _strides(shape))


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))


def row_numbers(rows: Sequence[int] | np.ndarray | None, length: int, name: str = "rows") -> np.ndarray:
    """Row numbers from numbers, a mask of booleans, or None for all rows of a table.

    Raises:
        ValueError: if there are none, or rows that the table does not have.
    """
    if rows is None:
        return np.arange(length)
    rows = np.asarray(rows)
    if rows.dtype == bool:
        if rows.shape != (length,):
            raise ValueError(f"{name} is a mask of {rows.shape[0]} entries, the store has {length} images")
        rows = np.flatnonzero(rows)
    if rows.ndim != 1 or not len(rows) or not np.issubdtype(rows.dtype, np.integer):
        raise ValueError(f"{name} must be a list of row numbers or a mask, and not empty")
    if rows.min() < 0 or rows.max() >= length:
        raise ValueError(f"{name} reach from {rows.min()} to {rows.max()}, the store has {length} images")
    return rows
