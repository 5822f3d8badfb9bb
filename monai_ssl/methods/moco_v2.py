# SPDX-License-Identifier: Apache-2.0
"""MoCo v2: momentum contrast with an MLP head.

Chen, Fan, Girshick, He, *Improved Baselines with Momentum Contrastive Learning*, arXiv 2003.04297 (head, temperature
and augmentation); He et al., arXiv 1911.05722, equation 1 (loss), equation 2 (teacher), algorithm 1.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import normalize

from monai_ssl.losses import InfoNCELoss
from monai_ssl.networks import ImageEncoder

from .momentum_contrast import MomentumContrast
from .positives import relatives
from .requirements import check_views

__all__ = ["MoCoV2"]


class MoCoV2(MomentumContrast):
    """Tell an image's other view from the queue of other images' keys.

    The defaults are the paper's: 128 dimensions, a queue of 65,536, temperature 0.2, momentum 0.999; the recipe beside
    them is SGD, learning rate 0.03 at batch 256, momentum 0.9, weight decay 1e-4, cosine schedule.

    Args:
        encoder: the network to pretrain.
        temperature: t, positive.
        head: see :class:`MomentumContrast`, also for the other arguments.
        embedding_dim: D.
        queue_size: K.
        momentum: m.
        final_momentum: m at the end of a cosine schedule; None keeps it constant.
        shuffle_batch_norm: Shuffle-BN.
        in_batch_negatives: the batch's own keys are negatives too.
        decay_all: decay biases and normalisation parameters too.
        patient_positives: another image of the patient in the batch gives a further positive key.
        exclude_own_patient: no key of the query's own patient is a negative.

    On some thousand images and one GPU: a queue shorter than the pool (512, say), momentum 0.99 with
    ``final_momentum=1``, ``in_batch_negatives=True``, AdamW at 1e-3 and batches of 64.

    Example:
        >>> import torch
        >>> from monai_ssl.networks import build_encoder
        >>> method = MoCoV2(build_encoder("resnet18"), queue_size=64)
        >>> out = method({"views": [torch.rand(4, 1, 32, 32), torch.rand(4, 1, 32, 32)]})
        >>> out["loss"].backward()
        >>> method.after_step(progress=0.1)
        >>> int(method.queue.total_enqueued)
        4
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        *,
        temperature: float = 0.2,
        head: str = "mlp",
        embedding_dim: int = 128,
        queue_size: int = 65536,
        momentum: float = 0.999,
        final_momentum: float | None = None,
        shuffle_batch_norm: bool = False,
        in_batch_negatives: bool = False,
        decay_all: bool = False,
        patient_positives: bool = False,
        exclude_own_patient: bool = False,
    ) -> None:
        super().__init__(
            encoder,
            InfoNCELoss(temperature, normalized=True),
            head=head,
            embedding_dim=embedding_dim,
            queue_size=queue_size,
            momentum=momentum,
            final_momentum=final_momentum,
            shuffle_batch_norm=shuffle_batch_norm,
            in_batch_negatives=in_batch_negatives,
            decay_all=decay_all,
            patient_positives=patient_positives,
            exclude_own_patient=exclude_own_patient,
        )

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """See :meth:`SSLMethod.forward`; needs two views."""
        view_1, view_2 = check_views(self, batch["views"])
        related = relatives(batch, self.patient_positives, self.exclude_own_patient)
        query = normalize(self.student(view_1).float())
        key = normalize(self.teach(batch, view_2)[0].float())
        loss = self.contrast(query, key, related)
        self.enqueue_later(key, patient=related.patient)
        return {"loss": loss, "embedding": query.detach()}
