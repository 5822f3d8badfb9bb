# SPDX-License-Identifier: Apache-2.0
"""The machine that MoCo and C2L share: student, momentum teacher, and a queue of the teacher's keys.

He, Fan, Wu, Xie, Girshick, *Momentum Contrast for Unsupervised Visual Representation Learning*, CVPR 2020, arXiv
1911.05722.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from monai_ssl.losses import ConstantZNCELoss, InfoNCELoss
from monai_ssl.networks import (
    BatchShuffle,
    FeatureQueue,
    ImageEncoder,
    LinearHead,
    MLPHead,
    MomentumCopy,
    cosine_momentum,
)
from monai_ssl.networks import shuffle_batch_norm as forward_shuffled

from .base import SSLMethod
from .positives import Relatives
from .requirements import check_momentum

__all__ = ["MomentumContrast"]

NO_RELATIVES = Relatives()


class MomentumContrast(SSLMethod):
    """Student and teacher (encoder + projection head) and a queue of keys; subclasses write the losses.

    Args:
        encoder: the network to pretrain.
        criterion: the loss of queries, keys and negatives.
        head: ``"linear"`` (one layer) or ``"mlp"`` (two layers, hidden width = the encoder's features).
        embedding_dim: D, length of the embedding.
        queue_size: K, number of keys kept as negatives. On a small pool keep it below the number of images: a longer
            queue holds older keys of the very image that is being told apart.
        momentum: m of the teacher's update ``g <- m g + (1 - m) f``, in [0, 1].
        final_momentum: where a cosine schedule takes m by the end of the training; None keeps it constant.
        shuffle_batch_norm: give the teacher a batch shuffled over the processes (Shuffle-BN). It changes nothing with
            one process, nor where BatchNorm is synchronised.
        in_batch_negatives: let the batch's own keys be negatives beside the queue's. BatchNorm gives the keys of one
            batch a common trace, by which a query can tell its positive from the whole queue; among the keys of its
            own batch the trace tells nothing. In several processes each one's own keys serve.
        decay_all: let weight decay act on biases and normalisation parameters too, as the papers' SGD does.
        patient_positives: another image of the patient in the batch, if there is one, gives a further positive key:
            the loss is the mean over both. Needs ``batch["group_id"]`` or ``batch["positive_id"]``, see
            :func:`~monai_ssl.methods.relatives`, and a sampler that brings relatives together
            (:class:`monai_ssl.data.EpochSampler` with ``groups``). Implies ``exclude_own_patient``.
        exclude_own_patient: the query's own patient is no negative: neither the queue's keys of that patient, whose
            number the queue remembers, nor those of the batch. A query that is left without negatives has loss 0.

    Raises:
        ValueError: unknown ``head``, or a momentum outside [0, 1].
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        criterion: InfoNCELoss | ConstantZNCELoss,
        *,
        head: Literal["linear", "mlp"],
        embedding_dim: int,
        queue_size: int,
        momentum: float,
        final_momentum: float | None,
        shuffle_batch_norm: bool,
        in_batch_negatives: bool,
        decay_all: bool,
        patient_positives: bool = False,
        exclude_own_patient: bool = False,
    ) -> None:
        super().__init__(encoder)
        check_momentum(momentum=momentum, final_momentum=final_momentum)
        if head == "linear":
            self.head: nn.Module = LinearHead(encoder.num_features, embedding_dim)
        elif head == "mlp":
            self.head = MLPHead(encoder.num_features, encoder.num_features, embedding_dim)
        else:
            raise ValueError(f"head must be 'linear' or 'mlp', got {head!r}")
        self.criterion = criterion
        self.teacher = MomentumCopy(nn.Sequential(self.encoder, self.head))
        self.queue = FeatureQueue(queue_size, embedding_dim)
        self.momentum = momentum
        self.final_momentum = momentum if final_momentum is None else final_momentum
        self.shuffle_batch_norm = shuffle_batch_norm
        self.in_batch_negatives = in_batch_negatives
        self.decay_all = decay_all
        self.patient_positives = patient_positives
        self.exclude_own_patient = exclude_own_patient
        self._waiting_keys: list[tuple[Tensor, Tensor]] = []

    def student(self, x: Tensor) -> Tensor:
        """Embed views with gradient: (B, C, *spatial) -> (B, D), not normalised."""
        return self.head(self.encoder(x))

    def teach(self, batch: dict[str, Any], *views: Tensor) -> list[Tensor]:
        """Embed views by the teacher, all under one Shuffle-BN permutation: each (B, C, *spatial) -> (B, D)."""
        if not self.shuffle_batch_norm:
            return [self.teacher(view) for view in views]
        shuffle = BatchShuffle(views[0].shape[0], views[0].device, batch.get("generator"))
        return [forward_shuffled(self.teacher, view, shuffle) for view in views]

    def contrast(self, query: Tensor, key: Tensor, related: Relatives = NO_RELATIVES) -> Tensor:
        """Loss of unit queries (B, D) against unit keys (B, D), with the queue and, if so set, the other keys.

        Args:
            query: of the student.
            key: of the teacher, row i the positive of query i.
            related: whose keys are positives too, and whose no negatives.
        """
        queue, partner = self.queue.features, related.partners()
        if isinstance(self.criterion, ConstantZNCELoss):
            queue = queue.clone()  # that criterion needs it in backward(), before which keys may enter the ring
        negatives, left_out = queue, self._left_out(related.patient, len(query))
        if self.in_batch_negatives:
            negatives = torch.cat([queue, key])
        loss = self.criterion(query, key, negatives, negative_mask=left_out)
        if partner is None:
            return loss
        # Who has no partner is its own, so that the mean of both is its plain loss.
        return (loss + self.criterion(query, key[partner], negatives, negative_mask=left_out)) / 2

    def _left_out(self, patient: Tensor | None, size: int) -> Tensor | None:
        """What is no negative: (B, K), with the batch's own keys (B, K + B); None where everything is one."""
        in_queue = None if patient is None else self.queue.of_group(patient)
        if not self.in_batch_negatives:
            return in_queue
        if patient is None:
            in_queue = self.queue.groups.new_zeros(size, len(self.queue.groups), dtype=torch.bool)
            patient = torch.arange(size, device=in_queue.device)
        return torch.cat([in_queue, patient[:, None] == patient], dim=1)

    def enqueue_later(self, *keys: Tensor, patient: Tensor | None = None) -> None:
        """Keep unit keys (B, D), each of the images of ``patient`` (B,), for the queue until the step is done."""
        if self.training:
            for key in keys:
                unknown = self.queue.groups.new_full((len(key),), -1)
                self._waiting_keys.append((key, unknown if patient is None else patient))

    def after_step(self, progress: float) -> None:
        """Move the teacher towards the student and let the waiting keys into the queue."""
        momentum = cosine_momentum(self.momentum, self.final_momentum, progress)
        self.teacher.update(nn.Sequential(self.encoder, self.head), momentum)
        if self._waiting_keys:
            keys, patients = zip(*self._waiting_keys, strict=True)
            self.queue.enqueue(torch.cat(keys), torch.cat(patients))
            self._waiting_keys.clear()

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return the student's parameters; see :meth:`SSLMethod.parameter_groups` and ``decay_all``."""
        groups = super().parameter_groups(weight_decay)
        if self.decay_all:
            groups[1]["weight_decay"] = weight_decay
        return groups
