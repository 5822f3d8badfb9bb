# SPDX-License-Identifier: Apache-2.0
"""Tables of volumes and their label maps: CSV, Parquet, or the ``dataset.json`` of the Medical Segmentation Decathlon.

The format of ``dataset.json`` is that of Antonelli et al. 2022, "The Medical Segmentation Decathlon", Nature
Communications 13, and of ``monai.data.load_decathlon_datalist``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from monai_ssl.data.labels import find_labels_file, read_labels, relative_name
from monai_ssl.data.volume_files import ITK_SUFFIXES

logger = logging.getLogger(__name__)

DATASET_JSON = "dataset.json"
_SUFFIXES = (".nii", ".nii.gz", *ITK_SUFFIXES)
_SPLIT_OF = {"training": "train", "validation": "val", "test": "test"}

# What the field "modality" of a dataset.json says, in terms of DICOM's Modality.
_MODALITY_OF = dict.fromkeys(("MR", "MRI", "T1", "T1W", "T1GD", "T2", "T2W", "FLAIR", "ADC"), "MR") | {"CT": "CT"}


def find_volume_labels(root: str | Path) -> Path | None:
    """Find the table of a folder of volumes: at its top, a table with a column ``file`` or ``image``, or a Decathlon's.

    Raises:
        ValueError: if there are several; one must then be given.
    """
    table = find_labels_file(root, ("file", "image"))
    decathlon = Path(root) / DATASET_JSON
    if not decathlon.is_file():
        return table
    if table is not None:
        raise ValueError(f"{root} has two tables of volumes ({table.name}, {DATASET_JSON}): name one")
    return decathlon


def read_volume_labels(path: str | Path, root: str | Path) -> pa.Table:
    """Read a table of volumes: one row an image with its label map, if it has one, and anything else.

    A column ``image`` is taken for ``file``. A column ``label`` that holds names of NIfTI, NRRD or MetaImage files is
    taken for ``label_map``; with anything else in it, it stays a label.

    Args:
        path: CSV or Parquet (see ``read_labels``), or a ``dataset.json``. The lists ``training``, ``validation`` and
            ``test`` become the splits train, val and test. A file with neither a list ``validation`` nor labels in
            ``test`` has no splits to train and measure with: its training images have none then, and are dealt later.
        root: the folder; names of label maps are made relative to it.

    Returns:
        Table with ``file``, perhaps ``label_map``, and the user's columns.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read or has no column or list of images.
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        table = _read_decathlon(path)
    else:
        table = read_labels(path, aliases={"image": "file"})
    if "label_map" not in table.column_names and _holds_files(table, "label"):
        table = table.rename_columns(["label_map" if name == "label" else name for name in table.column_names])
    if "label_map" in table.column_names:
        names = [_cell(value, root) for value in table["label_map"].to_pylist()]
        place = table.schema.get_field_index("label_map")
        table = table.set_column(place, "label_map", pa.array(names, pa.string()))
    return table


def _cell(value: Any, root: str | Path) -> str | None:
    return relative_name(value, root) if isinstance(value, str) and value.strip() else None


def _holds_files(table: pa.Table, column: str) -> bool:
    if column not in table.column_names or not pa.types.is_string(table.schema.field(column).type):
        return False
    values = [value.strip().lower() for value in table[column].to_pylist() if value and value.strip()]
    return bool(values) and all(value.endswith(_SUFFIXES) for value in values)


def _read_decathlon(path: Path) -> pa.Table:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such table of labels") from None
    except ValueError as error:
        raise ValueError(f"{path} is not a readable JSON file: {error}") from error
    lists = {key: content[key] for key in _SPLIT_OF if content.get(key)} if isinstance(content, dict) else {}
    if not lists or not all(isinstance(entries, list) for entries in lists.values()):
        raise ValueError(
            f"{path} lists no images under {', '.join(_SPLIT_OF)}: it is no dataset.json of a Decathlon; "
            "write a CSV with the columns file and label_map"
        )
    rows = []
    for key, entries in lists.items():
        rows += [_entry(entry, f"{path}: {key}[{number}]") | {"split": key} for number, entry in enumerate(entries)]
    if "validation" not in lists and not any(row["label_map"] for row in rows if row["split"] == "test"):
        logger.info("%s has no validation images and no labels in its test images: training is split later", path)
        dealt: dict[str, str | None] = {"training": None}
    else:
        dealt = {}
    for row in rows:
        row["split"] = dealt.get(row["split"], _SPLIT_OF[row["split"]])
    table = pa.table({name: pa.array([row[name] for row in rows], pa.string()) for name in rows[0]})
    modality = _modality(content.get("modality"))
    if modality is not None:
        table = table.append_column("modality", pa.array([modality] * len(rows), pa.string()))
    return table


def _entry(entry: Any, where: str) -> dict[str, str | None]:
    image, label = (entry.get("image"), entry.get("label")) if isinstance(entry, dict) else (entry, None)
    image = _only(image)
    if not isinstance(image, str) or not image.strip():
        raise ValueError(f"{where} names no image file, or several; a row is one file (channels: its fourth axis)")
    return {"file": image, "label_map": label if isinstance(label, str) else None}


def _only(value: Any) -> Any:
    return value[0] if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 1 else value


def _modality(stated: Any) -> str | None:
    """DICOM's term if all channels are of one modality, else None."""
    values = stated.values() if isinstance(stated, dict) else [stated]
    found = {_MODALITY_OF.get(str(value).strip().upper()) for value in values}
    return found.pop() if len(found) == 1 else None
