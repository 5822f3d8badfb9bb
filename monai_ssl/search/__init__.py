# SPDX-License-Identifier: Apache-2.0
"""Find images of an embedded folder by a sentence or by an image."""

from __future__ import annotations

from monai_ssl.search.embed import embed_folder
from monai_ssl.search.embedded_folder import EmbeddedFolder, SearchHit
from monai_ssl.search.queries import SearchAnswer, open_model_of, search_by_image, search_by_text

__all__ = [
    "EmbeddedFolder",
    "SearchAnswer",
    "SearchHit",
    "embed_folder",
    "open_model_of",
    "search_by_image",
    "search_by_text",
]
