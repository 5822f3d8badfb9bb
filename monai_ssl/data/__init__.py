# SPDX-License-Identifier: Apache-2.0
"""Index, readers, intensity policies, store, datasets, samplers, splits, duplicates and example data."""

from __future__ import annotations

from monai_ssl.data.decoders import available_decoders
from monai_ssl.data.duplicates import DuplicateReport, drop_duplicates, find_duplicates
from monai_ssl.data.errors import UnreadableImageError
from monai_ssl.data.index import build_index, describe_index
from monai_ssl.data.labels import find_labels_file, join_labels, read_labels, select_rows
from monai_ssl.data.readers import RadiographReader, open_radiograph, read_radiograph

__all__ = [
    "DuplicateReport",
    "RadiographReader",
    "UnreadableImageError",
    "available_decoders",
    "build_index",
    "describe_index",
    "drop_duplicates",
    "find_duplicates",
    "find_labels_file",
    "join_labels",
    "open_radiograph",
    "read_labels",
    "read_radiograph",
    "select_rows",
]
