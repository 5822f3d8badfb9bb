# SPDX-License-Identifier: Apache-2.0
"""The trainer and what it steps with: schedules, optimisers, measured precision, several processes, config guard."""

from __future__ import annotations

from .config_guard import refuse_unknown_keys
from .distributed import end_distributed, is_main_process, local_device, named_device, start_distributed
from .epochs import EpochBatches
from .optimizers import LARS, build_optimizer
from .plain_errors import explain_errors
from .precision import PrecisionChoice, choose_precision
from .pretrain import PretrainTrainer
from .random_state import preserved_random_state
from .schedules import StepSchedule, polynomial_schedule, sawtooth_cosine, step_schedule, warmup_cosine
from .stopping import TrainingStopped

__all__ = [
    "LARS",
    "EpochBatches",
    "PrecisionChoice",
    "PretrainTrainer",
    "StepSchedule",
    "TrainingStopped",
    "build_optimizer",
    "choose_precision",
    "end_distributed",
    "explain_errors",
    "is_main_process",
    "local_device",
    "named_device",
    "polynomial_schedule",
    "preserved_random_state",
    "refuse_unknown_keys",
    "sawtooth_cosine",
    "start_distributed",
    "step_schedule",
    "warmup_cosine",
]
