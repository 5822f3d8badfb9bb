# SPDX-License-Identifier: Apache-2.0
"""Labelling less: which image to label next, studies of how much that saves, and an app for MONAI Label."""

from __future__ import annotations

from .cluster_uncertainty import cluster_uncertain_images
from .core_set import core_set_images
from .entropy import entropy_images, entropy_uncertainty
from .epistemic import epistemic_images, epistemic_uncertainty
from .margin import margin_images, margin_uncertainty
from .next_images import NextImages
from .pool import LabelPool
from .probability_coverage import coverage_radius, covering_images
from .random_images import random_images
from .strategies import STRATEGIES, LabelStrategy, choose_images
from .typicality import typical_images, typicality

__all__ = [
    "STRATEGIES",
    "LabelPool",
    "LabelStrategy",
    "NextImages",
    "choose_images",
    "cluster_uncertain_images",
    "core_set_images",
    "coverage_radius",
    "covering_images",
    "entropy_images",
    "entropy_uncertainty",
    "epistemic_images",
    "epistemic_uncertainty",
    "margin_images",
    "margin_uncertainty",
    "random_images",
    "typical_images",
    "typicality",
]
