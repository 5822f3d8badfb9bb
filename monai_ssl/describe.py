# SPDX-License-Identifier: Apache-2.0
"""Say what a path is: weights, an index, a store, an image, a volume or a DICOM series; facts without identifiers."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pyarrow as pa

from monai_ssl.data import UnreadableImageError, describe_index, open_series, open_volumes, read_radiograph
from monai_ssl.data.readers import sniff_kind
from monai_ssl.data.store import store_in
from monai_ssl.data.tables import read_table, require_columns
from monai_ssl.data.volume_files import ITK_SUFFIXES
from monai_ssl.data.volume_text import describe_volumes
from monai_ssl.search import EmbeddedFolder
from monai_ssl.search.embedded_folder import FACTS_NAME as SEARCH_INDEX
from monai_ssl.weights import describe_weights

__all__ = ["describe_path"]

_WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".tar")
_MOST_SLICES = 5000  # more files in one folder are an archive, which the index is for
_STORES_OWN = ("shape:", "spacing:", "orientation:", "with a label map:")
_FACTS = ("photometric", "transfer_syntax", "bits_stored", "frames", "modality", "body_part", "view")


def describe_path(path: str | Path) -> str:
    """Describe a weights file, an index or another table of it, a store, an image, a volume or a DICOM folder.

    A file that holds a volume is described as one, any other image as a picture. Of a folder only the DICOM files at
    its top are looked at.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: it is nothing that this package reads; of an image or series, the reason why it cannot be used.
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
    if path.suffix.lower() in ITK_SUFFIXES:
        return describe_volumes(open_volumes(path), path)
    kind = sniff_kind(path)
    if kind is None:
        raise ValueError(
            f"{path} is no image, no index (.parquet), no store and no weights file ({', '.join(_WEIGHTS)})"
        )
    if kind in ("nifti", "dicom"):
        try:
            found = open_volumes(path)
        except UnreadableImageError:
            found = None  # a flat NIfTI, or broken: reading it as a picture says why
        if found is not None and found.volumes:
            return describe_volumes(found, path)
    return _describe_image(path)


def _describe_folder(folder: Path) -> str:
    store = store_in(folder)
    if store is not None:
        # The first line, and the geometry of volumes, are in the store's own words.
        counts = describe_index(store.table).splitlines()[1:]
        counts = [line for line in counts if not line.strip().startswith(_STORES_OWN)]
        return "\n".join([store.describe(), *counts, _columns(store.table)])
    if (folder / SEARCH_INDEX).is_file():
        return EmbeddedFolder(folder).describe()
    for place in (folder / "encoder.safetensors", folder / "index.parquet"):
        if place.is_file():
            return describe_path(place)
    files = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    slices = [path for path in files[: _MOST_SLICES + 1] if _is_dicom(path)]
    found = open_series(slices if len(slices) <= _MOST_SLICES else [])
    if found.volumes:
        return describe_volumes(found, folder)
    what = f": its {len(slices)} DICOM files make none ({found.refused[0].reason})" if found.refused else ""
    raise ValueError(
        f"{folder} holds no finished store, index, encoder or volume{what}. If it is a folder of images, "
        f"'python -m monai_ssl index {folder}' tells what is in it; of volumes, with --spatial_dims 3"
    )


def _is_dicom(path: Path) -> bool:
    try:
        return path.is_file() and sniff_kind(path) == "dicom"
    except (OSError, UnreadableImageError):
        return False


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
