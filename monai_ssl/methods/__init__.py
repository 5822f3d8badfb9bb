# SPDX-License-Identifier: Apache-2.0
"""Self-supervised methods: one method, one file."""

from __future__ import annotations

from .barlow_twins import BarlowTwins
from .base import SSLMethod
from .byol import BYOL
from .c2l import C2L
from .mae_vit import MAEViT
from .masked_autoencoder import MaskedAutoencoderCNN
from .masked_modelling import MaskedModelling
from .moco_v2 import MoCoV2
from .moco_v3 import MoCoV3
from .models_genesis import ModelsGenesis
from .momentum_contrast import MomentumContrast
from .positives import Relatives, partners, relatives
from .simclr import SimCLR
from .simmim import SimMIM
from .simsiam import SimSiam
from .swin_unetr_pretext import SwinUNETRPretext
from .vicreg import VICReg
from .voco import VoCo

__all__ = [
    "BYOL",
    "C2L",
    "BarlowTwins",
    "MAEViT",
    "MaskedAutoencoderCNN",
    "MaskedModelling",
    "MoCoV2",
    "MoCoV3",
    "ModelsGenesis",
    "MomentumContrast",
    "Relatives",
    "SSLMethod",
    "SimCLR",
    "SimMIM",
    "SimSiam",
    "SwinUNETRPretext",
    "VICReg",
    "VoCo",
    "partners",
    "relatives",
]
