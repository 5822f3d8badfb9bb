# SPDX-License-Identifier: Apache-2.0
"""Say what a file or folder of this package is: weights, an index, a store, or an image; facts without identifiers."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pyarrow as pa

from monai_ssl.data import describe_index, read_radiograph
from monai_ssl.data.readers import sniff_kind
from monai_ssl.data.store import FACTS_NAME, ImageStore
from monai_ssl.data.tables import read_table, require_columns
from monai_ssl.weights import describe_weights

__all__ = ["describe_path"]

_WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".tar")
_FACTS = ("photometric", "transfer_syntax", "bits_stored", "frames", "modality", "body_part", "view")


def describe_path(path: str | Path) -> str:
    """Describe a weights file, an index or another table of it, a store, or an image.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: it is nothing that this package reads; of an image, the reason why it cannot be used.
    """
    path = Path(path)
    if path.is_dir():
        return _describe_folder(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.suffix.lower() in _WEIGHTS:
        return describe_weights(path)
    if path.suffix.lower() == ".parquet":
        return _describe_table(path)
    if sniff_kind(path) is None:
        raise ValueError(
            f"{path} is no image, no index (.parquet), no store and no weights file ({', '.join(_WEIGHTS)})"
        )
    return _describe_image(path)


def _describe_folder(folder: Path) -> str:
    for place in (folder, folder / "store"):
        if (place / FACTS_NAME).is_file():
            store = ImageStore(place)
            counts = describe_index(store.table).splitlines()[1:]  # the first line is in the store's own words
            return "\n".join([store.describe(), *counts, _columns(store.table)])
    for place in (folder / "encoder.safetensors", folder / "index.parquet"):
        if place.is_file():
            return describe_path(place)
    raise ValueError(
        f"{folder} holds no finished store, index or encoder. If it is a folder of images, "
        f"'python -m monai_ssl index {folder}' tells what is in it"
    )


def _describe_table(path: Path) -> str:
    table = read_table(path)
    require_columns(table, ["path", "status", "reason"], str(path))
    return f"{path}: {describe_index(table)}\n{_columns(table)}"


def _columns(table: pa.Table) -> str:
    return textwrap.fill(
        f"columns: {', '.join(table.column_names)}", 120, initial_indent="  ", subsequent_indent="    "
    )


def _describe_image(path: Path) -> str:
    values, meta = read_radiograph(path)
    low, high = meta["value_range"]
    spacing = meta["pixel_spacing_mm"]
    rows = {
        "file": f"{path}, {path.stat().st_size / 1e3:,.1f} kB",
        "kind": meta["kind"],
        "size": f"{values.shape[0]} rows x {values.shape[1]} columns",
        "spacing": "not given" if spacing is None else " x ".join(f"{mm:g}" for mm in spacing) + " mm",
        "values": f"{values.min():g} to {values.max():g}, mean {values.mean():g}",
        "shown range": f"{low:g} to {high:g}, from {meta['value_range_source'].replace('_', ' ')}"
        + (", inverted (MONOCHROME1)" if meta.get("inverted") else ""),
    }
    rows |= {name.replace("_", " "): str(meta[name]) for name in _FACTS if meta.get(name) is not None}
    return "\n".join(f"{name:<16} {text}" for name, text in rows.items())
