# SPDX-License-Identifier: Apache-2.0
"""The two trainings of a study: labels of a source train an encoder, then a fold of a target fine-tunes it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import DataLoader
from monai.utils import set_determinism
from torch import nn
from torch.nn import functional as F

from monai_ssl.data import PadCollate
from monai_ssl.engines import PretrainTrainer, build_optimizer, warmup_cosine
from monai_ssl.evaluation import (
    ClassificationLabels,
    ClassifierEvaluator,
    ClassifierMethod,
    FixedLengthSampler,
    LabelledStoreDataset,
    Preprocessing,
    RocAreaScore,
    StartingPoint,
    classification_layer,
    fine_tuning_views,
    supervised_task,
)
from monai_ssl.handlers import EncoderExport
from monai_ssl.methods import SSLMethod, Supervised
from monai_ssl.networks import build_encoder
from monai_ssl.weights.files import write_tensors

from .labelled_set import LabelledSet

__all__ = ["StudyRecipe", "fine_tune_fold", "pretrain_source"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudyRecipe:
    """What all trainings of a study have in common. The defaults suit small sets on a CPU.

    Attributes:
        architecture: of the network, see :func:`monai_ssl.networks.build_encoder`.
        network_args: its further arguments.
        image_size: side of the network's input in pixels.
        batch_size: images a step.
        max_epochs: of fine-tuning.
        source_epochs: of pretraining on a source.
        steps_per_epoch: None: as many as the training images fill, rounded down, at least one. A number gives every
            set the same budget.
        learning_rate: of fine-tuning.
        source_learning_rate: of pretraining.
        weight_decay: of both.
        backbone_factor: learning rate of a pretrained encoder relative to the head's.
        head_dropout: share of the pooled features that are dropped before the last layer in fine-tuning.
        class_weight_power: 1: rare classes count as much as frequent ones, 0: as their images.
        augmentation: strength of the views, see :func:`monai_ssl.evaluation.fine_tuning_views`.
        flip_prob: of the left-right mirror.
        weight_average: momentum of the average that is evaluated; 0: the last weights.
        warmup_fraction: share of the steps in which the rate rises; then it falls by a cosine.
        constant_rate: no schedule at all, as the Cats paper has it.
        precision: see :class:`monai_ssl.engines.PretrainTrainer`.
        channels_last: likewise.
    """

    architecture: str = "resnet18"
    network_args: dict[str, Any] = field(default_factory=dict)
    image_size: int = 48
    batch_size: int = 32
    max_epochs: int = 10
    source_epochs: int = 20
    steps_per_epoch: int | None = None
    learning_rate: float = 1e-3
    source_learning_rate: float = 1e-3
    weight_decay: float = 0.05
    backbone_factor: float = 1.0
    head_dropout: float = 0.5
    class_weight_power: float = 1.0
    augmentation: float = 1.0
    flip_prob: float = 0.5
    weight_average: float = 0.9
    warmup_fraction: float = 0.1
    constant_rate: bool = False
    precision: str = "fp32"
    channels_last: bool | str = False

    def __post_init__(self) -> None:
        if not 0 <= self.head_dropout < 1:
            raise ValueError(f"head_dropout must be in [0, 1), got {self.head_dropout}")


def pretrain_source(
    data: LabelledSet, rows: np.ndarray, recipe: StudyRecipe, folder: Path, device: torch.device | str, seed: int
) -> Path:
    """Train an encoder by the labels of a source's rows.

    Args:
        data: the source.
        rows: of its store.
        recipe: of the study.
        folder: gets ``encoder.safetensors`` and ``head.safetensors`` (the classifier of the source, for LEEP).
        device: where to train.
        seed: of initialisation, order and views.

    Returns:
        The encoder's file.
    """
    set_determinism(seed)
    labels = data.question(rows)
    preprocessing = Preprocessing((recipe.image_size,) * 2).with_store(data.store)
    encoder = build_encoder(recipe.architecture, 2, 1, **recipe.network_args)
    method = Supervised(encoder, supervised_task(labels, class_weight_power=recipe.class_weight_power))
    manifest = {
        "intensity": preprocessing.intensity(),
        "data_fingerprint": data.fingerprint,
        "method_args": {"source": data.name, "classes": len(labels.class_names)},
    }
    optimizer = build_optimizer(method, "adamw", recipe.source_learning_rate, recipe.weight_decay)
    trainer = _trainer(data, labels, method, optimizer, preprocessing, recipe, recipe.source_epochs, device, seed)
    EncoderExport(folder, manifest, every_epochs=max(recipe.source_epochs, 1)).attach(trainer)
    trainer.run()
    head = method.heads.tasks["label"].head
    write_tensors(folder / "head.safetensors", {"weight": head.weight, "bias": head.bias}, {})
    return folder / "encoder.safetensors"


def fine_tune_fold(
    data: LabelledSet,
    train: np.ndarray,
    test: np.ndarray,
    encoder_weights: Path | None,
    recipe: StudyRecipe,
    device: torch.device | str,
    seed: int,
) -> float:
    """Fine-tune all layers on one fold of a target, with a new head, and return the AUC on its other part.

    Args:
        data: the target.
        train: rows to train on.
        test: rows to test on, with the weights of the end: nothing is selected.
        encoder_weights: None: random weights.
        recipe: of the study.
        device: where to train.
        seed: of head, order and views.

    Returns:
        Area under the ROC curve, of several classes the prevalence-weighted mean of one against the rest.

    Raises:
        WeightsMismatchError: the weights do not fit.
        ValueError: they were trained on images of another intensity policy.
    """
    set_determinism(seed)
    mode = "finetune" if encoder_weights else "scratch"
    network = (recipe.architecture, recipe.network_args) if encoder_weights is None else (None, None)
    start = StartingPoint(mode, encoder_weights, *network, image_size=recipe.image_size)
    preprocessing = start.preprocessing.with_store(data.store)
    labels = data.question(train, test)
    classifier = start.build(len(labels.class_names))
    method = ClassifierMethod(
        classifier,
        class_weights=labels.class_weights(recipe.class_weight_power),
        weight_average=recipe.weight_average,
    )
    classification_layer(classifier).register_forward_pre_hook(_DropFeatures(recipe.head_dropout))
    factor = recipe.backbone_factor if encoder_weights else 1.0
    groups = method.groups(recipe.learning_rate, factor, weight_decay=recipe.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate)
    _trainer(data, labels, method, optimizer, preprocessing, recipe, recipe.max_epochs, device, seed).run()
    area = RocAreaScore(class_names=labels.class_names, average="weighted")
    loader = DataLoader(LabelledStoreDataset(data.store, labels, "test"), batch_size=64, collate_fn=PadCollate())
    evaluator = ClassifierEvaluator(
        device, loader, method.classifier, preprocessing.view(), key_val_metric={"auc": area}
    )
    evaluator.run()
    return float(evaluator.state.metrics["auc"])


class _DropFeatures:
    """Dropout before a layer, which stays the network's one last layer under its own name."""

    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, layer: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (F.dropout(inputs[0], self.p, layer.training),)


def _trainer(
    data: LabelledSet,
    labels: ClassificationLabels,
    method: SSLMethod,
    optimizer: torch.optim.Optimizer,
    preprocessing: Preprocessing,
    recipe: StudyRecipe,
    epochs: int,
    device: torch.device | str,
    seed: int,
) -> PretrainTrainer:
    dataset = LabelledStoreDataset(data.store, labels, "train", cache="memory")
    batch = min(recipe.batch_size, len(dataset))
    steps = recipe.steps_per_epoch or max(len(dataset) // batch, 1)
    sampler = FixedLengthSampler(len(dataset), steps * batch, seed)
    return PretrainTrainer(
        device,
        epochs,
        DataLoader(dataset, batch_size=batch, sampler=sampler, collate_fn=PadCollate(), drop_last=True),
        method,
        optimizer,
        fine_tuning_views(
            preprocessing.image_size,
            strength=recipe.augmentation,
            flip_prob=recipe.flip_prob,
            standardize=preprocessing.standardize(),
        ),
        seed=seed,
        precision=recipe.precision,
        channels_last=recipe.channels_last,
        learning_rate_schedule=None if recipe.constant_rate else warmup_cosine(warmup_fraction=recipe.warmup_fraction),
    )
