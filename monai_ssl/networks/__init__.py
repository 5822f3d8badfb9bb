# SPDX-License-Identifier: Apache-2.0
"""Encoders over MONAI networks, projection heads, the momentum copy and the feature queue."""

from __future__ import annotations

from .densenet import DenseNetImageEncoder
from .efficientnet import EfficientNetImageEncoder
from .encoders import ImageEncoder, build_classifier, build_encoder, encoder_architectures
from .gather import gather_rows
from .heads import LinearHead, MLPHead
from .momentum import MomentumCopy
from .queue import FeatureQueue
from .resnet import ResNetImageEncoder
from .shuffle import BatchShuffle, shuffle_batch_norm
from .sync_batch_norm import SynchronizedBatchNorm, convert_sync_batch_norm
from .vit import MeanTokenViT, ViTImageEncoder

__all__ = [
    "BatchShuffle",
    "DenseNetImageEncoder",
    "EfficientNetImageEncoder",
    "FeatureQueue",
    "ImageEncoder",
    "LinearHead",
    "MLPHead",
    "MeanTokenViT",
    "MomentumCopy",
    "ResNetImageEncoder",
    "SynchronizedBatchNorm",
    "ViTImageEncoder",
    "build_classifier",
    "build_encoder",
    "convert_sync_batch_norm",
    "encoder_architectures",
    "gather_rows",
    "shuffle_batch_norm",
]
