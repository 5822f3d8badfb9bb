# SPDX-License-Identifier: Apache-2.0
"""The machine that MoCo and C2L share: student, momentum teacher, and a queue of the teacher's keys.

He, Fan, Wu, Xie, Girshick, *Momentum Contrast for Unsupervised Visual Representation Learning*, CVPR 2020, arXiv
1911.05722.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from monai_ssl.losses import ConstantZNCELoss, InfoNCELoss
from monai_ssl.networks import BatchShuffle, FeatureQueue, ImageEncoder, LinearHead, MLPHead, MomentumCopy
from monai_ssl.networks import shuffle_batch_norm as forward_shuffled

from .base import SSLMethod

__all__ = ["MomentumContrast"]


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
    ) -> None:
        super().__init__(encoder)
        for name, value in (("momentum", momentum), ("final_momentum", final_momentum)):
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {value}")
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
        self._waiting_keys: list[Tensor] = []

    def student(self, x: Tensor) -> Tensor:
        """Embed views with gradient: (B, C, *spatial) -> (B, D), not normalised."""
        return self.head(self.encoder(x))

    def teach(self, batch: dict[str, Any], *views: Tensor) -> list[Tensor]:
        """Embed views by the teacher, all under one Shuffle-BN permutation: each (B, C, *spatial) -> (B, D)."""
        if not self.shuffle_batch_norm:
            return [self.teacher(view) for view in views]
        shuffle = BatchShuffle(views[0].shape[0], views[0].device, batch.get("generator"))
        return [forward_shuffled(self.teacher, view, shuffle) for view in views]

    def contrast(self, query: Tensor, key: Tensor) -> Tensor:
        """Loss of unit queries (B, D) against their unit keys (B, D), with the queue and, if so set, the other keys."""
        queue = self.queue.features
        if isinstance(self.criterion, ConstantZNCELoss):
            queue = queue.clone()  # that criterion needs it in backward(), before which keys may enter the ring
        if not self.in_batch_negatives:
            return self.criterion(query, key, queue)
        size = len(query)
        own = torch.zeros(size, len(queue) + size, dtype=torch.bool, device=query.device)
        own[:, len(queue) :].fill_diagonal_(True)
        return self.criterion(query, key, torch.cat([queue, key]), negative_mask=own)

    def enqueue_later(self, *keys: Tensor) -> None:
        """Keep unit keys (B, D) for the queue until the optimiser step is done."""
        if self.training:
            self._waiting_keys += keys

    def after_step(self, progress: float) -> None:
        """Move the teacher towards the student and let the waiting keys into the queue."""
        rest = (1 + math.cos(math.pi * progress)) / 2  # 1 at the start, 0 at the end
        momentum = self.final_momentum - (self.final_momentum - self.momentum) * rest
        self.teacher.update(nn.Sequential(self.encoder, self.head), momentum)
        if self._waiting_keys:
            self.queue.enqueue(torch.cat(self._waiting_keys))
            self._waiting_keys.clear()

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return the student's parameters; see :meth:`SSLMethod.parameter_groups` and ``decay_all``."""
        groups = super().parameter_groups(weight_decay)
        if self.decay_all:
            groups[1]["weight_decay"] = weight_decay
        return groups
