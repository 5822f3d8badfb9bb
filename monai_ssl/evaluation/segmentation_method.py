# SPDX-License-Identifier: Apache-2.0
"""Training a segmentation network with the trainer of this package: what it needs of a method, for label maps.

:class:`PretrainTrainer` draws random patches on the device, the label map through the same draw; with this method it
minimises Dice and cross entropy, so supervised training resumes, autocasts and distributes as pretraining does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.losses import DeepSupervisionLoss, DiceCELoss
from torch import Tensor, nn

from monai_ssl.evaluation.fine_tuning import WeightAverage, fine_tuning_groups
from monai_ssl.evaluation.segmentation_start import freeze_encoder, set_encoder_training, trains_encoder
from monai_ssl.methods import SSLMethod
from monai_ssl.networks import EncoderDecoder

__all__ = ["SegmentationMethod"]


class SegmentationMethod(SSLMethod):
    """A MONAI segmentation network, its loss, and the moving average of its weights, for :class:`PretrainTrainer`.

    The loss is MONAI's ``DiceCELoss``: one minus the soft Dice of softmax probabilities, summed over the batch before
    the ratio (small structures are absent from many patches), plus the cross entropy. A network that gives several
    outputs in training (DynUNet with ``deep_supervision``) is trained by MONAI's ``DeepSupervisionLoss`` on all.

    Args:
        encoder: of :func:`monai_ssl.evaluation.build_segmenter`. If none of its encoder's parameters learns, the
            encoder stays in evaluation mode.
        include_background: count the background in the Dice part.
        dice_weight: of the Dice part.
        ce_weight: of the cross entropy.
        class_weights: (1 + K,) for the cross entropy and the Dice, background first, or None.
        weight_average: momentum of the average that is evaluated and saved; 0 has none.
        encoder_warmup_steps: first steps in which the encoder is frozen, in evaluation mode, and only decoder and head
            learn, so that their first, random gradients do not reach the pretrained layers (in a process group the
            trainer then needs ``find_unused_parameters``).

    Attributes:
        network: what is trained.
        segmenter: what is to be evaluated and saved: the average, or the network itself.

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(
        self,
        encoder: EncoderDecoder,
        include_background: bool = False,
        dice_weight: float = 1.0,
        ce_weight: float = 1.0,
        class_weights: Sequence[float] | None = None,
        weight_average: float = 0.99,
        encoder_warmup_steps: int = 0,
    ) -> None:
        super().__init__(encoder)
        if encoder_warmup_steps < 0 or dice_weight < 0 or ce_weight < 0 or dice_weight + ce_weight == 0:
            raise ValueError(
                "encoder_warmup_steps, dice_weight and ce_weight must be at least 0, and one weight above it, got "
                f"{encoder_warmup_steps}, {dice_weight} and {ce_weight}"
            )
        if class_weights is not None and len(class_weights) != encoder.out_channels:
            raise ValueError(
                f"class_weights must be {encoder.out_channels} numbers, the background's first, got {class_weights}"
            )
        self.num_outputs = encoder.out_channels
        self.loss = DeepSupervisionLoss(
            DiceCELoss(
                include_background=include_background,
                to_onehot_y=True,
                softmax=True,
                batch=True,
                lambda_dice=dice_weight,
                lambda_ce=ce_weight,
                weight=None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32),
            )
        )
        self.frozen = not trains_encoder(encoder)
        self.encoder_warmup_steps = 0 if self.frozen else encoder_warmup_steps
        self.average = WeightAverage(encoder.net, weight_average) if weight_average else None
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @property
    def network(self) -> nn.Module:
        """The network that is trained."""
        return self.encoder.net

    @property
    def segmenter(self) -> nn.Module:
        """The network to evaluate and save."""
        return self.network if self.average is None else self.average.module

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Compute the loss of the first view.

        Args:
            batch: ``"views"``: list with one tensor (B, C, *spatial); ``"label_map"``: list with one tensor
                (B, 1, *spatial) of class numbers 0 .. K.

        Returns:
            ``"loss"``; ``"dice"``: mean over the classes that occur in the batch; ``"embedding"``: (B, 1 + K) mean
            logits, without gradient.
        """
        image = batch["views"][0]
        target = batch["label_map"][0][: len(image)]  # the trainer measures its precision on the first images
        self._settle_encoder()
        output = self.network(image)
        outputs = list(output.unbind(1)) if output.ndim == image.ndim + 1 else [output]
        logits = outputs[0].detach().float()
        return {
            "loss": self.loss([each.float() for each in outputs], target.float()),
            "dice": _batch_dice(logits.argmax(1), target[:, 0].long(), self.num_outputs),
            "embedding": logits.flatten(2).mean(2),
        }

    def after_step(self, progress: float) -> None:
        """Update the average."""
        self.steps += 1
        if self.average is not None:
            self.average.update(self.network)

    def groups(
        self, learning_rate: float, backbone_factor: float = 1.0, layer_decay: float = 1.0, weight_decay: float = 0.0
    ) -> list[dict[str, Any]]:
        """Return parameter groups with a rate for each depth: decoder and head learn fastest.

        See :func:`monai_ssl.evaluation.fine_tuning_groups`.
        """
        return fine_tuning_groups(self.network, learning_rate, backbone_factor, layer_decay, weight_decay)

    def _settle_encoder(self) -> None:
        """Freeze the encoder, or let it learn, as the step demands."""
        if not self.training:
            return
        if self.encoder_warmup_steps:
            resting = int(self.steps) < self.encoder_warmup_steps
            freeze_encoder(self.encoder, resting)
            set_encoder_training(self.encoder, not resting)
        elif self.frozen:
            set_encoder_training(self.encoder, False)


def _batch_dice(predicted: Tensor, true: Tensor, num_outputs: int) -> Tensor:
    """Mean Dice over the classes that occur in the truth or the prediction, of the whole batch at once; 0 if none."""
    pairs = (true * num_outputs + predicted).flatten().bincount(minlength=num_outputs**2)
    table = pairs.view(num_outputs, num_outputs).float()
    sizes = (table.sum(0) + table.sum(1))[1:]
    return (2 * table.diagonal()[1:] / sizes.clamp(min=1)).sum() / (sizes > 0).sum().clamp(min=1)
