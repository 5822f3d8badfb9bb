# SPDX-License-Identifier: Apache-2.0
"""Write the model of images and text beside the encoder, of the same moment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_ssl.data import ReportTokenizer
from monai_ssl.engines import PretrainTrainer
from monai_ssl.handlers.export import EncoderExport
from monai_ssl.weights import save_image_text

__all__ = ["ImageTextExport"]


class ImageTextExport(EncoderExport):
    """:class:`EncoderExport` that also leaves ``image_text.safetensors``, each time with the same weights.

    The file of the best or the newest one is named as the encoder's: ``image_text_best.safetensors``, ... . For a
    method with a ``model``, as :class:`monai_ssl.methods.ConVIRT` has it.

    Args:
        folder: where the files go.
        tokenizer: of the sentences; it is in the file.
        manifest: see :class:`EncoderExport`.
        options: likewise.
    """

    def __init__(
        self, folder: str | Path, tokenizer: ReportTokenizer, manifest: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        super().__init__(folder, manifest, **options)
        self.tokenizer = tokenizer

    def _save(self, engine: PretrainTrainer, path: Path, manifest: dict[str, Any]) -> None:
        super()._save(engine, path, manifest)
        beside = path.with_name(path.name.replace("encoder", "image_text", 1))
        save_image_text(engine.method.model, self.tokenizer, beside, manifest)
