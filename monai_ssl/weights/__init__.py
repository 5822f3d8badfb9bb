# SPDX-License-Identifier: Apache-2.0
"""Weights on disk: manifest, atomic safetensors files, transfer into MONAI networks, ImageNet checkpoints."""

from __future__ import annotations

from .adapt import CHANNEL_POLICIES, adapt_channels
from .describe import describe_weights
from .files import WeightsFileError, atomic_file
from .image_text import load_image_text, save_image_text
from .imagenet import load_imagenet_weights, read_checkpoint
from .load import load_encoder, open_encoder, read_manifest, save_encoder
from .manifest import MANIFEST_FIELDS, build_manifest, check_manifest
from .nnunet import export_nnunet
from .report import LoadReport, WeightsMismatchError
from .start import start_from

__all__ = [
    "CHANNEL_POLICIES",
    "MANIFEST_FIELDS",
    "LoadReport",
    "WeightsFileError",
    "WeightsMismatchError",
    "adapt_channels",
    "atomic_file",
    "build_manifest",
    "check_manifest",
    "describe_weights",
    "export_nnunet",
    "load_encoder",
    "load_image_text",
    "load_imagenet_weights",
    "open_encoder",
    "read_checkpoint",
    "read_manifest",
    "save_encoder",
    "save_image_text",
    "start_from",
]
