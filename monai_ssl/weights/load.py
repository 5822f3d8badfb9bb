# SPDX-License-Identifier: Apache-2.0
"""Save an encoder with its manifest; load it into an encoder or into any MONAI network that has it inside."""

from __future__ import annotations

import json
import os
from typing import Any

from torch import nn

from monai_ssl.networks import ImageEncoder, build_encoder, patch_grid

from .files import WeightsFileError, read_header, read_tensors, write_tensors
from .manifest import SCHEMA, build_manifest, check_manifest, stage_summary
from .match import EncoderTensors, transfer
from .report import LoadReport

__all__ = ["load_encoder", "open_encoder", "read_manifest", "save_encoder"]

IMAGE_TEXT_KEY = "monai_ssl_image_text"  # in the header of a file of save_image_text
_HEADER_KEY = "monai_ssl"
_COMPARED_ELSEWHERE = {"img_size", "conv1_t_stride", "shortcut_type", "bias_downsample", "qkv_bias", "out_channels"}
_COMPARED_ELSEWHERE |= {"interpolate_positions"}  # which changes nothing at the size a ViT was built for


def save_encoder(
    encoder: ImageEncoder, path: str | os.PathLike, manifest: dict[str, Any], with_decoder: bool = False
) -> dict[str, Any]:
    """Write an encoder's weights under MONAI's keys, without task head, with the manifest in the header.

    Args:
        encoder: what to save.
        path: usually ``encoder.safetensors``; replaced only when the new file is complete.
        manifest: fields for :func:`monai_ssl.weights.build_manifest`, at least ``method``.
        with_decoder: save the decoder too, for segmentation networks of the same shape. The last layer, whose channels
            the task decides, stays out.

    Returns:
        The complete manifest as written.

    Raises:
        ValueError: an invalid manifest, or no decoder to save.
        OSError: the disk is full; the old file is intact.
    """
    if with_decoder and getattr(encoder, "out_channels", None) is None:
        raise ValueError(f"with_decoder=True, but this {encoder.architecture} has no decoder (see build_encoder)")
    complete = build_manifest(encoder, manifest, with_decoder)
    tensors = encoder.encoder_state_dict(with_decoder)
    write_tensors(path, tensors, {_HEADER_KEY: json.dumps(complete), "format": "pt"})
    return complete


def read_manifest(path: str | os.PathLike) -> dict[str, Any]:
    """Return the manifest of a file that :func:`save_encoder` wrote, without reading its tensors.

    Raises:
        FileNotFoundError: no such file.
        WeightsFileError: truncated, damaged, of another format, without a manifest or with one from a newer version.
    """
    header = read_header(path)[0]
    text = header.get(_HEADER_KEY)
    if text is None and IMAGE_TEXT_KEY in header:
        raise WeightsFileError(
            f"{path} holds a model of images and text, which load_image_text opens; the image encoder alone is in the "
            "encoder.safetensors of the same training"
        )
    if text is None:
        raise WeightsFileError(
            f"{path} has no monai_ssl manifest: save_encoder did not write it; "
            "load_imagenet_weights reads plain checkpoints"
        )
    try:
        manifest = json.loads(text)
    except ValueError as error:
        raise WeightsFileError(f"the manifest of {path} is damaged: {error}") from error
    return checked_manifest(path, manifest)


def checked_manifest(path: str | os.PathLike, manifest: Any) -> dict[str, Any]:
    """Return the manifest of a file if all of it can be used.

    Raises:
        WeightsFileError: it can't.
    """
    try:
        schema = manifest.get("schema")
        if isinstance(schema, int) and schema > SCHEMA:
            raise WeightsFileError(f"{path} was written by a newer monai_ssl (manifest {schema}, known {SCHEMA})")
        check_manifest(manifest)
        if not {"architecture", "arguments", "spatial_dims", "in_channels", "stem"} <= manifest["network"].keys():
            raise ValueError("the network is not described")
    except WeightsFileError:
        raise
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise WeightsFileError(f"the manifest of {path} is damaged: {error}") from error
    return manifest


def load_encoder(
    net: nn.Module,
    path: str | os.PathLike,
    min_coverage: float = 0.9,
    channel_policy: str | None = None,
    with_decoder: bool = True,
) -> LoadReport:
    """Load an encoder's weights into an encoder, or into the part of a network where they fit.

    The place is found from the keys and shapes: the network itself (an :class:`ImageEncoder`, a MONAI classifier), or
    any module inside it (``FlexibleUNet.encoder``, ``UNETR.vit``, a DDP wrapper). Print the report.

    Args:
        net: changed in place; untouched after an error. An :class:`ImageEncoder` also takes over the lineage.
        path: a file of :func:`save_encoder`.
        min_coverage: smallest part (by bytes) that must be loaded, of the network's encoder and of the file both. The
            network's encoder is everything under the file's top-level names, so a new task head does not count.
        channel_policy: ``"sum"``, ``"mean"``, ``"first"`` or ``"repeat"``
            (:func:`monai_ssl.weights.adapt_channels`) where the network has another number of input channels. Without
            it, that is an error.
        with_decoder: load the decoder too, where the file and the network have one.

    Returns:
        What became of each tensor; ``str(report)`` is readable.

    Raises:
        FileNotFoundError: no such file.
        WeightsFileError: the file is truncated, damaged or not an encoder of this package.
        WeightsMismatchError: too little fits, or the first layer does not; the message holds the report.
    """
    manifest = read_manifest(path)
    network = manifest["network"]
    tensors, decoder = read_tensors(path), tuple(network.get("decoder", ()))
    if not with_decoder:
        tensors = {key: value for key, value in tensors.items() if not key.startswith(decoder)}
        decoder = ()
    found = EncoderTensors(
        source=str(path),
        tensors=tensors,
        stem_key=network["stem"]["key"],
        architecture=network["architecture"],
        stem_stride=network["stem"]["stride"],
        grid=patch_grid(network["arguments"], network["spatial_dims"]),
        lineage=(*(manifest["lineage"] or ()), stage_summary(manifest)),
        decoder=decoder,
    )
    if isinstance(net, ImageEncoder):
        found.notes = _argument_notes(network["arguments"], net.network_args)
    return transfer(net, found, min_coverage, channel_policy)


def open_encoder(path: str | os.PathLike) -> ImageEncoder:
    """Build the encoder that a file describes and load all of its weights.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file can't be read, or names an architecture that :func:`build_encoder` does not know.
    """
    network = read_manifest(path)["network"]
    encoder = build_encoder(
        network["architecture"], network["spatial_dims"], network["in_channels"], **network["arguments"]
    )
    load_encoder(encoder, path, min_coverage=1.0)
    return encoder


def _argument_notes(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """Name arguments that may differ without changing a shape, such as a norm."""
    default = "MONAI's default"
    return [
        f"built with {name}={ours.get(name, default)} here, {theirs.get(name, default)} where the weights come from"
        for name in sorted((theirs.keys() | ours.keys()) - _COMPARED_ELSEWHERE)
        if theirs.get(name) != ours.get(name)
    ]
