# SPDX-License-Identifier: Apache-2.0
"""Handlers for the trainer: checkpoints and resume, export, probes and alarms, curves, speed and progress.

All have MONAI's ``attach(engine)`` and are given as ``train_handlers``. Their order does not matter: the checkpoint
restores first and saves last, and what reports comes after what measures.
"""

from __future__ import annotations

from .checkpoint import TrainingCheckpoint
from .collapse import CollapseMonitor, EmbeddingHealth, judge_embeddings
from .curves import TrainingCurves
from .encoder_start import EncoderStart
from .export import EncoderExport
from .image_text_export import ImageTextExport
from .probe import OnlineProbe
from .progress import ProgressETA
from .reconstruction_sheet import ReconstructionSheet
from .tensorboard import PretrainTensorBoard, view_grid
from .throughput import Throughput
from .time_budget import TimeBudget
from .validation_loss import ValidationEvents, ValidationLoss

__all__ = [
    "CollapseMonitor",
    "EmbeddingHealth",
    "EncoderExport",
    "EncoderStart",
    "ImageTextExport",
    "OnlineProbe",
    "PretrainTensorBoard",
    "ProgressETA",
    "ReconstructionSheet",
    "Throughput",
    "TimeBudget",
    "TrainingCheckpoint",
    "TrainingCurves",
    "ValidationEvents",
    "ValidationLoss",
    "judge_embeddings",
    "view_grid",
]
