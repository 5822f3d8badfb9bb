# SPDX-License-Identifier: Apache-2.0
"""Losses: pure functions of tensors, and thin modules that hold temperature and state.

All compute in float32 under autocast, and each module says in ``distribution`` how it spreads over processes.
"""

from __future__ import annotations

from monai_ssl.losses.distillation import TeacherCodes, distillation, patch_distillation
from monai_ssl.losses.distributed import DistributedKind, all_gather, is_distributed
from monai_ssl.losses.group_nt_xent import GroupNTXentLoss, group_nt_xent
from monai_ssl.losses.image_text import ImageTextContrastLoss, image_text_contrast
from monai_ssl.losses.info_nce import InfoNCELoss, info_nce
from monai_ssl.losses.koleo import KoLeoLoss, koleo
from monai_ssl.losses.masked_labels import (
    IGNORED_LABEL,
    MaskedBinaryCrossEntropyLoss,
    MaskedCrossEntropyLoss,
    MaskedDiceCrossEntropyLoss,
    masked_binary_cross_entropy,
    masked_cross_entropy,
    masked_dice,
)
from monai_ssl.losses.masked_reconstruction import (
    MaskedReconstructionLoss,
    masked_reconstruction,
    patch_statistics,
)
from monai_ssl.losses.nce import ConstantZNCELoss, estimate_log_z, nce_constant_z
from monai_ssl.losses.negative_cosine import (
    CosineRegressionLoss,
    NegativeCosineLoss,
    cosine_regression,
    negative_cosine,
)
from monai_ssl.losses.nt_xent import NTXentLoss, nt_xent
from monai_ssl.losses.point_contrast import PointContrastLoss, point_contrast
from monai_ssl.losses.redundancy_reduction import (
    RedundancyReductionLoss,
    redundancy_reduction,
    redundancy_terms,
)
from monai_ssl.losses.sinkhorn import sinkhorn
from monai_ssl.losses.swapped_prediction import SwappedPredictionLoss, swapped_prediction
from monai_ssl.losses.vicreg import VICRegLoss, vicreg, vicreg_terms
from monai_ssl.losses.volume_contrast import (
    BaseOrthogonalityLoss,
    OverlapPredictionLoss,
    base_orthogonality,
    overlap_prediction,
)

__all__ = [
    "IGNORED_LABEL",
    "BaseOrthogonalityLoss",
    "ConstantZNCELoss",
    "CosineRegressionLoss",
    "DistributedKind",
    "GroupNTXentLoss",
    "ImageTextContrastLoss",
    "InfoNCELoss",
    "KoLeoLoss",
    "MaskedBinaryCrossEntropyLoss",
    "MaskedCrossEntropyLoss",
    "MaskedDiceCrossEntropyLoss",
    "MaskedReconstructionLoss",
    "NTXentLoss",
    "NegativeCosineLoss",
    "OverlapPredictionLoss",
    "PointContrastLoss",
    "RedundancyReductionLoss",
    "SwappedPredictionLoss",
    "TeacherCodes",
    "VICRegLoss",
    "all_gather",
    "base_orthogonality",
    "cosine_regression",
    "distillation",
    "estimate_log_z",
    "group_nt_xent",
    "image_text_contrast",
    "info_nce",
    "is_distributed",
    "koleo",
    "masked_binary_cross_entropy",
    "masked_cross_entropy",
    "masked_dice",
    "masked_reconstruction",
    "nce_constant_z",
    "negative_cosine",
    "nt_xent",
    "overlap_prediction",
    "patch_distillation",
    "patch_statistics",
    "point_contrast",
    "redundancy_reduction",
    "redundancy_terms",
    "sinkhorn",
    "swapped_prediction",
    "vicreg",
    "vicreg_terms",
]
