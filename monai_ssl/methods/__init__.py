# SPDX-License-Identifier: Apache-2.0
"""Self-supervised methods: one method, one file."""

from __future__ import annotations

from .barlow_twins import BarlowTwins
from .base import SSLMethod
from .byol import BYOL
from .c2l import C2L
from .convirt import ConVIRT
from .dense_contrast import DenseContrast
from .dino import DINO
from .dinov2 import DINOv2
from .hybrid import Hybrid
from .ibot import IBOT
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
from .self_distillation import SelfDistillation
from .simclr import SimCLR
from .simmim import SimMIM
from .simsiam import SimSiam
from .supervised import Supervised
from .supervised_heads import SupervisedHeads
from .supervised_tasks import ClassTask, FindingsTask, SegmentationTask, SupervisedTask
from .swav import SwAV
from .swin_unetr_pretext import SwinUNETRPretext
from .vicreg import VICReg
from .voco import VoCo

__all__ = [
    "BYOL",
    "C2L",
    "DINO",
    "IBOT",
    "PIRL",
    "BarlowTwins",
    "ClassTask",
    "ConVIRT",
    "DINOv2",
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
    "SelfDistillation",
    "SimCLR",
    "SimMIM",
    "SimSiam",
    "Supervised",
    "SupervisedHeads",
    "SupervisedTask",
    "SwAV",
    "SwinUNETRPretext",
    "VICReg",
    "VoCo",
    "partners",
    "relatives",
]
