# SPDX-License-Identifier: Apache-2.0
"""Index, readers, intensity policies, store, datasets, samplers, splits, duplicates and example data."""

from __future__ import annotations

from monai_ssl.data.decoders import available_decoders
from monai_ssl.data.errors import UnreadableImageError

__all__ = [
    "UnreadableImageError",
    "available_decoders",
]
