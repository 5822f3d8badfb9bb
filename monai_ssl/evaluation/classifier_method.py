# SPDX-License-Identifier: Apache-2.0
"""Supervised fine-tuning as a method of the trainer: it then resumes, autocasts and distributes as pretraining does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from monai_ssl.evaluation.fine_tuning import WeightAverage, classification_layer, fine_tuning_groups
from monai_ssl.losses import masked_binary_cross_entropy, masked_cross_entropy
from monai_ssl.methods import SSLMethod
from monai_ssl.networks import ImageEncoder

__all__ = ["ClassifierMethod"]


class ClassifierMethod(SSLMethod):
    """A MONAI classifier, its loss, and the moving average of its weights, for :class:`PretrainTrainer`.

    The loss is the cross entropy of competing classes (label -1 does not count), or the mean binary cross entropy of
    findings over the known labels; in several processes, over those of all.

    Args:
        network: made by :func:`monai_ssl.networks.build_classifier`.
        multilabel: the classes do not exclude each other.
        class_weights: from :func:`monai_ssl.evaluation.class_weights`, or None.
        label_smoothing: of competing classes, in [0, 1).
        weight_average: momentum of the average that is evaluated and saved; 0 has none.
        head_warmup_steps: first steps in which the encoder is frozen, in evaluation mode, and only the head learns (the
            trainer then needs ``find_unused_parameters`` in a process group).

    Attributes:
        network: what is trained.
        classifier: what is to be evaluated and saved: the average, or the network itself.

    Raises:
        ValueError: a number is out of its range, or the network has no head of one linear layer.
    """

    def __init__(
        self,
        network: nn.Module,
        multilabel: bool = False,
        class_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
        weight_average: float = 0.98,
        head_warmup_steps: int = 0,
    ) -> None:
        super().__init__(ImageEncoder(network))
        if not 0 <= label_smoothing < 1 or head_warmup_steps < 0:
            raise ValueError(
                "label_smoothing must be in [0, 1) and head_warmup_steps at least 0, got "
                f"{label_smoothing} and {head_warmup_steps}"
            )
        if label_smoothing and multilabel:
            raise ValueError("label_smoothing is for competing classes, not for findings")
        classification_layer(network)
        self.multilabel, self.label_smoothing = multilabel, label_smoothing
        self.head_warmup_steps = head_warmup_steps
        self.average = WeightAverage(network, weight_average) if weight_average else None
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @property
    def network(self) -> nn.Module:
        """The network that is trained."""
        return self.encoder.net

    @property
    def classifier(self) -> nn.Module:
        """The network to evaluate and save."""
        return self.network if self.average is None else self.average.module

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Compute the loss of the first view.

        Args:
            batch: ``"views"``: list with one tensor (B, C, *spatial); ``"label"``: (B,) classes or (B, K) findings.

        Returns:
            ``"loss"``; ``"accuracy"`` over the known labels; ``"embedding"``: the (B, K) logits without gradient.
        """
        logits = self._logits(batch["views"][0]).float()
        labels = batch["label"][: len(logits)]  # the trainer measures its precision on the first images of a batch
        known = labels >= 0
        if self.multilabel:
            loss = masked_binary_cross_entropy(logits, labels, self.class_weights)
            right = (logits > 0) == (labels > 0)
        else:
            loss = masked_cross_entropy(logits, labels, self.class_weights, label_smoothing=self.label_smoothing)
            right = logits.argmax(dim=1) == labels
        accuracy = (right & known).sum() / known.sum().clamp(min=1)
        return {"loss": loss, "accuracy": accuracy.detach(), "embedding": logits.detach()}

    def after_step(self, progress: float) -> None:
        """Update the average."""
        self.steps += 1
        if self.average is not None:
            self.average.update(self.network)

    def groups(
        self, learning_rate: float, backbone_factor: float = 1.0, layer_decay: float = 1.0, weight_decay: float = 0.0
    ) -> list[dict[str, Any]]:
        """Return parameter groups with a rate for each depth, see :func:`monai_ssl.evaluation.fine_tuning_groups`."""
        return fine_tuning_groups(self.network, learning_rate, backbone_factor, layer_decay, weight_decay)

    def _logits(self, images: Tensor) -> Tensor:
        if self.training and int(self.steps) < self.head_warmup_steps:
            self.encoder.eval()
            with torch.no_grad():
                features = self.encoder(images)
            self.encoder.train()
            return classification_layer(self.network)(features)
        return self.network(images)
