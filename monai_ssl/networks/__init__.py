# SPDX-License-Identifier: Apache-2.0
"""Encoders over MONAI networks, projection heads, the momentum copy and the feature queue."""

from __future__ import annotations

from .basic_unet import BasicUNetClassifier, BasicUNetImageEncoder
from .densenet import DenseNetImageEncoder
from .dino_head import DINOHead
from .dynunet import DynUNetClassifier, DynUNetImageEncoder
from .efficientnet import EfficientNetImageEncoder
from .encoder_decoder import EncoderDecoder
from .encoders import ImageEncoder, build_classifier, build_encoder, encoder_architectures
from .flexible_unet import FlexibleUNetClassifier, FlexibleUNetImageEncoder
from .forward_by_size import forward_by_size
from .gather import gather_rows
from .heads import LinearHead, MLPHead
from .image_text import ImageTextModel
from .masked_decoder import MaskedTokenDecoder, sine_positions, tokens_to_image
from .mednext import MedNeXtClassifier, MedNeXtImageEncoder
from .memory_bank import MemoryBank
from .momentum import MomentumCopy, cosine_momentum
from .patch_positions import patch_grid, resize_positions
from .pretrained_text_encoder import PretrainedTextEncoder
from .prototypes import Prototypes
from .pyramid_head import PyramidHead
from .queue import FeatureQueue
from .resnet import ResNetImageEncoder
from .segresnet import SegResNetClassifier, SegResNetImageEncoder
from .sentence_encoder import SentenceEncoder
from .shuffle import BatchShuffle, shuffle_batch_norm
from .source_queues import SourceQueues
from .swin_unetr import SwinUNETRClassifier, SwinUNETRImageEncoder
from .sync_batch_norm import SynchronizedBatchNorm, convert_sync_batch_norm
from .text_pooling import TEXT_POOLINGS, pool_tokens
from .text_transformer import TextTransformer
from .unet import UNetClassifier, UNetImageEncoder
from .unetr import UNETRClassifier, UNETRImageEncoder
from .upsampling_head import UpsamplingHead, measure_maps, measure_stride
from .vit import MeanTokenViT, ViTImageEncoder

__all__ = [
    "TEXT_POOLINGS",
    "BasicUNetClassifier",
    "BasicUNetImageEncoder",
    "BatchShuffle",
    "DINOHead",
    "DenseNetImageEncoder",
    "DynUNetClassifier",
    "DynUNetImageEncoder",
    "EfficientNetImageEncoder",
    "EncoderDecoder",
    "FeatureQueue",
    "FlexibleUNetClassifier",
    "FlexibleUNetImageEncoder",
    "ImageEncoder",
    "ImageTextModel",
    "LinearHead",
    "MLPHead",
    "MaskedTokenDecoder",
    "MeanTokenViT",
    "MedNeXtClassifier",
    "MedNeXtImageEncoder",
    "MemoryBank",
    "MomentumCopy",
    "PretrainedTextEncoder",
    "Prototypes",
    "PyramidHead",
    "ResNetImageEncoder",
    "SegResNetClassifier",
    "SegResNetImageEncoder",
    "SentenceEncoder",
    "SourceQueues",
    "SwinUNETRClassifier",
    "SwinUNETRImageEncoder",
    "SynchronizedBatchNorm",
    "TextTransformer",
    "UNETRClassifier",
    "UNETRImageEncoder",
    "UNetClassifier",
    "UNetImageEncoder",
    "UpsamplingHead",
    "ViTImageEncoder",
    "build_classifier",
    "build_encoder",
    "convert_sync_batch_norm",
    "cosine_momentum",
    "encoder_architectures",
    "forward_by_size",
    "gather_rows",
    "measure_maps",
    "measure_stride",
    "patch_grid",
    "pool_tokens",
    "resize_positions",
    "shuffle_batch_norm",
    "sine_positions",
    "tokens_to_image",
]
