# SPDX-License-Identifier: Apache-2.0
"""Self-supervised methods: one method, one file."""

from __future__ import annotations

from .base import SSLMethod
from .c2l import C2L
from .mae_vit import MAEViT
from .masked_autoencoder import MaskedAutoencoderCNN
from .masked_modelling import MaskedModelling
from .moco_v2 import MoCoV2
from .moco_v3 import MoCoV3
from .modality_clustering import ModalityClustering
from .models_genesis import ModelsGenesis
from .momentum_contrast import MomentumContrast
from .online_clustering import OnlineClustering
from .positives import Relatives, partners, relatives
from .simclr import SimCLR
from .simmim import SimMIM
from .swav import SwAV
from .swin_unetr_pretext import SwinUNETRPretext
from .voco import VoCo

__all__ = [
    "C2L",
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
    "SSLMethod",
    "SimCLR",
    "SimMIM",
    "SwAV",
    "SwinUNETRPretext",
    "VoCo",
    "partners",
    "relatives",
]
