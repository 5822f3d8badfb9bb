# SPDX-License-Identifier: Apache-2.0
"""Self-supervised methods: one method, one file."""

from __future__ import annotations

from .base import SSLMethod
from .c2l import C2L
from .dense_contrast import DenseContrast
from .hybrid import Hybrid
from .mae_vit import MAEViT
from .masked_autoencoder import MaskedAutoencoderCNN
from .masked_modelling import MaskedModelling
from .moco_v2 import MoCoV2
from .moco_v3 import MoCoV3
from .modality_clustering import ModalityClustering
from .models_genesis import ModelsGenesis
from .momentum_contrast import MomentumContrast
from .online_clustering import OnlineClustering
from .pirl import PIRL
from .positives import Relatives, partners, relatives
from .rotation_prediction import RotationPrediction
from .simclr import SimCLR
from .simmim import SimMIM
from .supervised import Supervised
from .supervised_heads import SupervisedHeads
from .supervised_tasks import ClassTask, FindingsTask, SegmentationTask, SupervisedTask
from .swav import SwAV
from .swin_unetr_pretext import SwinUNETRPretext
from .voco import VoCo

__all__ = [
    "C2L",
    "PIRL",
    "ClassTask",
    "DenseContrast",
    "FindingsTask",
    "Hybrid",
    "MAEViT",
    "MaskedAutoencoderCNN",
    "MaskedModelling",
    "MoCoV2",
    "MoCoV3",
    "ModalityClustering",
    "ModelsGenesis",
    "MomentumContrast",
    "OnlineClustering",
    "Relatives",
    "RotationPrediction",
    "SSLMethod",
    "SegmentationTask",
    "SimCLR",
    "SimMIM",
    "Supervised",
    "SupervisedHeads",
    "SupervisedTask",
    "SwAV",
    "SwinUNETRPretext",
    "VoCo",
    "partners",
    "relatives",
]
