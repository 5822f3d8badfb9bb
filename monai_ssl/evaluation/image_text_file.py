# SPDX-License-Identifier: Apache-2.0
"""An image-text model as it is used: with its tokenizer, what it expects of an image, and a name for its weights."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from monai_ssl.data import ReportTokenizer
from monai_ssl.data.reports import Reports
from monai_ssl.data.store import ImageStore
from monai_ssl.evaluation.image_text import untrained_copy
from monai_ssl.evaluation.preprocessing import Preprocessing
from monai_ssl.evaluation.run_facts import describe_lineage
from monai_ssl.evaluation.zero_shot import Prompts
from monai_ssl.networks import ImageTextModel, TextTransformer, build_encoder
from monai_ssl.weights.manifest import stage_summary

__all__ = ["OpenImageText", "image_text_or_untrained", "open_image_text", "untrained_image_text"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenImageText:
    """A model ready for use.

    Attributes:
        model: a :class:`monai_ssl.networks.ImageTextModel`.
        tokenizer: its own.
        preprocessing: how images reach it.
        manifest: of its file; empty for a model that was never trained.
        fingerprint: SHA-256 of its file; empty without one.
    """

    model: nn.Module
    tokenizer: Any
    preprocessing: Preprocessing
    manifest: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""

    @property
    def trained(self) -> bool:
        """Whether it comes from a training."""
        return bool(self.manifest)

    @property
    def lineage(self) -> str:
        """The training stages in words, see :func:`monai_ssl.evaluation.describe_lineage`."""
        if not self.trained:
            return describe_lineage([])
        return describe_lineage([*(self.manifest.get("lineage") or ()), stage_summary(self.manifest)])

    def untrained(self, seed: int = 0) -> OpenImageText:
        """Return the same network with the weights of before any training, and the same tokenizer."""
        return replace(self, model=untrained_copy(self.model, seed), manifest={}, fingerprint="")

    @property
    def temperature(self) -> float:
        """The temperature that the model was trained with; 0.1, ConVIRT's, where its file does not say."""
        return float((self.manifest.get("method_args") or {}).get("temperature") or 0.1)


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


def untrained_image_text(
    texts: Sequence[str], image_size: int | Sequence[int] = 128, architecture: str = "resnet18", seed: int = 0
) -> OpenImageText:
    """Build an image-text model that has learnt nothing, with a vocabulary of its own.

    Args:
        texts: what the vocabulary is made of; sentences of the training images' reports.
        image_size: one side or both, in pixels.
        architecture: of the image encoder.
        seed: of the weights.

    Raises:
        ValueError: there is no text.
        ImportError: the extra ``text`` is not installed.
    """
    tokenizer = ReportTokenizer.train(texts, min_frequency=1)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        text_encoder = TextTransformer(tokenizer.vocab_size)
        model = ImageTextModel(build_encoder(architecture, 2, 1), text_encoder)
    size = (image_size,) * 2 if isinstance(image_size, int) else tuple(image_size)
    return OpenImageText(model.eval(), tokenizer, Preprocessing(size))


def image_text_or_untrained(
    model_file: str | Path | None,
    store: ImageStore,
    *,
    reports: Reports | None = None,
    prompts: Prompts | None = None,
    image_size: int | Sequence[int] | None = None,
    seed: int = 0,
) -> OpenImageText:
    """Open the model of a file; without one, build one that has learnt nothing, and say so.

    Args:
        model_file: of a training, or None.
        store: of the images; it must have been prepared as the model's images were.
        reports: of the images: a vocabulary is made of those that are in no split "val" or "test".
        prompts: likewise.
        image_size: in pixels; None: the model's, or 128.
        seed: of untrained weights.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no image-text model, or there is no text for a vocabulary.
    """
    if model_file is not None:
        size = (image_size,) * 2 if isinstance(image_size, int) else tuple(image_size or ()) or None
        opened = open_image_text(model_file, size)
    else:
        logger.warning("no model_file: an untrained network is evaluated, whose figures should be those of chance")
        held_out = set()
        if "split" in store.table.column_names:
            splits = store.table["split"].to_pylist()
            held_out = {row for row, split in enumerate(splits) if split in ("val", "test")}
        rows = [row for row in range(len(store)) if row not in held_out]
        texts = list(reports.texts(rows)) if reports is not None and rows else []
        if prompts is not None:
            texts += [text for group in (*prompts.positive, *(prompts.negative or ())) for text in group]
        opened = untrained_image_text(texts, image_size or 128, seed=seed)
    return replace(opened, preprocessing=opened.preprocessing.with_store(store))
