# SPDX-License-Identifier: Apache-2.0
"""An image-text model as it is used: with its tokenizer, what it expects of an image, and a name for its weights."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from monai_ssl.evaluation.preprocessing import Preprocessing

__all__ = ["OpenImageText", "open_image_text"]


@dataclass(frozen=True)
class OpenImageText:
    """A model ready for use.

    Attributes:
        model: a :class:`monai_ssl.networks.ImageTextModel`.
        tokenizer: its own.
        preprocessing: how images reach it.
        manifest: of its file; empty for a model that was never trained.
        fingerprint: SHA-256 of its file, or what else names its weights.
    """

    model: nn.Module
    tokenizer: Any
    preprocessing: Preprocessing
    manifest: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""

    @property
    def temperature(self) -> float:
        """The temperature that the model was trained with; 0.1, ConVIRT's, where its file does not say."""
        return float((self.manifest.get("arguments") or {}).get("temperature") or 0.1)


def open_image_text(path: str | Path, image_size: tuple[int, ...] | None = None) -> OpenImageText:
    """Open ``image_text.safetensors`` with all that a use of it needs.

    Args:
        path: the file.
        image_size: replaces the size the model was trained at.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no image-text model of this package.
    """
    from monai_ssl.weights import load_image_text

    path = Path(path)
    model, tokenizer, manifest = load_image_text(path)
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    preprocessing = Preprocessing.from_manifest(manifest, image_size)
    return OpenImageText(model.eval(), tokenizer, preprocessing, manifest, digest.hexdigest())
