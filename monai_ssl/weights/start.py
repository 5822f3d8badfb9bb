# SPDX-License-Identifier: Apache-2.0
"""Where an encoder's training starts: random weights, an earlier stage of ours, or an ImageNet-style checkpoint."""

from __future__ import annotations

import logging
import os

from monai_ssl.networks import ImageEncoder

from .imagenet import load_imagenet_weights
from .load import load_encoder

__all__ = ["start_from"]

logger = logging.getLogger(__name__)


def start_from(encoder: ImageEncoder, path: str | os.PathLike | None, channel_policy: str = "sum") -> ImageEncoder:
    """Load the weights to start from, and say what was loaded.

    Args:
        encoder: changed in place; its ``lineage`` gets the earlier stages.
        path: ``.safetensors`` of :func:`monai_ssl.weights.save_encoder`, a local ``.pth``/``.pt`` checkpoint with
            torchvision's or timm's names, or None: the weights stay random.
        channel_policy: how a stem of another number of channels becomes the encoder's.

    Returns:
        ``encoder``.

    Raises:
        FileNotFoundError, WeightsFileError, WeightsMismatchError: see :func:`monai_ssl.weights.load_encoder` and
            :func:`monai_ssl.weights.load_imagenet_weights`.
    """
    if path is None:
        return encoder
    foreign = str(path).endswith((".pth", ".pt"))
    report = (load_imagenet_weights if foreign else load_encoder)(encoder, path, channel_policy=channel_policy)
    logger.info("%s", report)
    return encoder
