# SPDX-License-Identifier: Apache-2.0
"""One file for a whole model of images and text: both towers, both projectors, and the tokenizer."""

from __future__ import annotations

import json
import os
from typing import Any

from monai_ssl.networks import ImageTextModel, SentenceEncoder, build_encoder
from monai_ssl.networks.report_tokenizer import ReportTokenizer

from .files import WeightsFileError, read_header, read_tensors, write_tensors
from .load import IMAGE_TEXT_KEY, checked_manifest
from .manifest import build_manifest

__all__ = ["load_image_text", "read_image_text", "save_image_text"]

SCHEMA = 1
_TOKENIZER_KEY = "monai_ssl_tokenizer"


def save_image_text(
    model: ImageTextModel, tokenizer: ReportTokenizer, path: str | os.PathLike, manifest: dict[str, Any]
) -> dict[str, Any]:
    """Write a model of images and text as one safetensors file; nothing in it is pickled.

    The header has the image encoder's manifest, as in ``encoder.safetensors``, the description of the text encoder, the
    projectors' widths and the tokenizer. **A tokenizer that was trained on reports holds words of them.** A task head
    of the image network and its decoder stay out.

    Args:
        model: what to save.
        tokenizer: of the sentences that the model was trained on.
        path: usually ``image_text.safetensors``; replaced only when the new file is complete.
        manifest: fields for :func:`monai_ssl.weights.build_manifest`, at least ``method``.

    Returns:
        The complete manifest as written.

    Raises:
        ValueError: an invalid manifest, or a tokenizer of another size than the text encoder's.
        OSError: the disk is full; the old file is intact.
    """
    tokenizer.check_fits(model.text_encoder)
    complete = build_manifest(model.image_encoder, manifest)
    layers = model.image_projector.layers[0], model.text_projector.layers[0]
    description = {
        "schema": SCHEMA,
        "manifest": complete,
        "text_encoder": model.text_encoder.description(),
        "embedding_dim": model.embedding_dim,
        "image_hidden": layers[0].out_features,
        "text_hidden": layers[1].out_features,
    }
    header = {IMAGE_TEXT_KEY: json.dumps(description), _TOKENIZER_KEY: tokenizer.to_json(), "format": "pt"}
    write_tensors(path, _tensors(model), header)
    return complete


def load_image_text(path: str | os.PathLike) -> tuple[ImageTextModel, ReportTokenizer, dict[str, Any]]:
    """Build the model of a file that :func:`save_image_text` wrote, with all of its weights, in evaluation mode.

    Args:
        path: the file.

    Returns:
        The model on the CPU, its tokenizer, and the manifest.

    Raises:
        FileNotFoundError: no such file.
        WeightsFileError: truncated, damaged, of another format, or written by a newer version.
        ImportError: the extra ``text`` is not installed.
    """
    description, tokenizer_text = read_image_text(path)
    manifest = description["manifest"]
    network = manifest["network"]
    try:
        image_encoder = build_encoder(
            network["architecture"], network["spatial_dims"], network["in_channels"], **network["arguments"]
        )
        image_encoder.lineage = tuple(manifest["lineage"] or ())
        text_encoder = SentenceEncoder.from_description(description["text_encoder"])
        widths = {name: description[name] for name in ("embedding_dim", "image_hidden", "text_hidden")}
        model = ImageTextModel(image_encoder, text_encoder, **widths)
        tokenizer = ReportTokenizer.from_json(tokenizer_text).check_fits(text_encoder)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsFileError(f"the description of {path} is damaged: {error}") from error
    tensors, wanted = read_tensors(path), _tensors(model)
    wrong = sorted(tensors.keys() ^ wanted.keys())
    wrong += [key for key in wanted.keys() & tensors.keys() if wanted[key].shape != tensors[key].shape]
    if wrong:
        raise WeightsFileError(f"{path} does not fit its own description: {wrong[0]} and {len(wrong) - 1} more")
    model.load_state_dict(tensors, strict=False)
    return model.eval(), tokenizer, manifest


def read_image_text(path: str | os.PathLike) -> tuple[dict[str, Any], str]:
    """Return the description of a file of :func:`save_image_text` and its tokenizer's JSON, without its tensors.

    Raises:
        FileNotFoundError: no such file.
        WeightsFileError: truncated, damaged, of another format, or written by a newer version.
    """
    header = read_header(path)[0]
    if IMAGE_TEXT_KEY not in header or _TOKENIZER_KEY not in header:
        raise WeightsFileError(f"{path} holds no model of images and text: save_image_text did not write it")
    try:
        description = json.loads(header[IMAGE_TEXT_KEY])
        schema, manifest = description["schema"], description["manifest"]
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsFileError(f"the description of {path} is damaged: {error}") from error
    if schema > SCHEMA:
        raise WeightsFileError(f"{path} was written by a newer monai_ssl (description {schema}, known {SCHEMA})")
    checked_manifest(path, manifest)
    return description, header[_TOKENIZER_KEY]


def _tensors(model: ImageTextModel) -> dict[str, Any]:
    """Weights and buffers, of the image network only the encoder's."""
    kept = {f"image_encoder.net.{key}" for key in model.image_encoder.encoder_state_dict()}
    state = model.state_dict()
    return {key: value for key, value in state.items() if key in kept or not key.startswith("image_encoder.")}
