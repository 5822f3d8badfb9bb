# SPDX-License-Identifier: Apache-2.0
"""MoCo v3: momentum contrast within the batch, with a predictor, for vision transformers too.

Chen, Xie, He, *An Empirical Study of Training Self-Supervised Vision Transformers*, ICCV 2021, arXiv 2104.02057,
equation 1 and algorithm 1. With views x1, x2, encoder f, projector g, predictor h and the momentum copy (f', g')::

    q1 = n(h(g(f(x1))))     q2 = n(h(g(f(x2))))             n(.) = L2 normalisation
    k1 = n(g'(f'(x1)))      k2 = n(g'(f'(x2)))              no gradient, gathered over processes
    ctr(q, k) = 2 t CE(q k^T / t, own place)                t: temperature, CE: cross-entropy over all N keys
    L = ctr(q1, k2) + ctr(q2, k1)
    (f', g') <- m (f', g') + (1 - m) (f, g)                 m: from 0.99 to 1 along half a cosine
"""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.blocks import PatchEmbeddingBlock
from torch import Tensor, nn
from torch.nn.functional import normalize

from monai_ssl.losses import info_nce
from monai_ssl.networks import ImageEncoder, MLPHead, MomentumCopy, cosine_momentum, gather_rows

from .base import SSLMethod
from .positives import Relatives, relatives
from .requirements import check_momentum, check_views

__all__ = ["MoCoV3"]


class MoCoV3(SSLMethod):
    """Tell an image's key from the keys of all other images of the batch, in both directions.

    The defaults are the paper's for a ViT, whose recipe is AdamW, learning rate 1.5e-4 for each 256 images of the batch
    of 4,096, weight decay 0.1, 40 epochs of warm-up, then a cosine schedule, 300 epochs. The released code's ResNet-50
    has ``projector_layers=2, predictor_batch_norm=False, temperature=1`` and LARS. On one GPU and some thousand
    images: batches of 64 to 256, hidden width 1,024, AdamW at 1e-3 (a ViT: 3e-4); where the training is as short as a
    few thousand steps a teacher of momentum 0.99 still moves enough.

    Args:
        encoder: the network to pretrain.
        temperature: t, positive.
        projector_layers: linear layers of the projector, at least 1.
        hidden_features: width of the hidden layers of projector and predictor, which have BatchNorm.
        embedding_dim: D.
        predictor_batch_norm: BatchNorm, without scale and shift, after the last layer of the predictor, as it always is
            after that of the projector.
        momentum: m at the start, in [0, 1].
        final_momentum: m at the end of the training; None keeps it constant.
        freeze_patch_embedding: leave the projection of a ViT's patches as it is, random or loaded: the paper's remedy
            for the dips of its training (section 4.2). Its parameters get no gradient and are in no parameter group.
            Networks without patch embedding are trained whole.
        patient_positives: another image of the patient in the batch, if there is one, gives a further positive key:
            the loss is the mean over both. Needs ``batch["group_id"]`` or ``batch["positive_id"]``, see
            :func:`~monai_ssl.methods.relatives`, and a sampler that brings relatives together
            (:class:`monai_ssl.data.EpochSampler` with ``groups``). Implies ``exclude_own_patient``.
        exclude_own_patient: no key of the query's own patient is a negative. A query that is left without negatives
            (all images are of one patient) has loss 0.

    Raises:
        ValueError: a temperature that is not positive, a momentum outside [0, 1], a projector without layers.

    Example:
        >>> import torch
        >>> from monai_ssl.networks import build_encoder
        >>> method = MoCoV3(build_encoder("resnet18"), hidden_features=64)
        >>> out = method({"views": [torch.rand(4, 1, 32, 32), torch.rand(4, 1, 32, 32)]})
        >>> out["loss"].backward()
        >>> method.after_step(progress=0.1)
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        *,
        temperature: float = 0.2,
        projector_layers: int = 3,
        hidden_features: int = 4096,
        embedding_dim: int = 256,
        predictor_batch_norm: bool = True,
        momentum: float = 0.99,
        final_momentum: float | None = 1.0,
        freeze_patch_embedding: bool = True,
        patient_positives: bool = False,
        exclude_own_patient: bool = False,
    ) -> None:
        super().__init__(encoder)
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        check_momentum(momentum=momentum, final_momentum=final_momentum)
        if freeze_patch_embedding:
            for module in encoder.modules():
                if isinstance(module, PatchEmbeddingBlock):
                    module.patch_embeddings.requires_grad_(False)
        width = (hidden_features, embedding_dim)
        self.projector = MLPHead(
            encoder.num_features, *width, num_layers=projector_layers, batch_norm=True, final_batch_norm=True
        )
        self.predictor = MLPHead(embedding_dim, *width, batch_norm=True, final_batch_norm=predictor_batch_norm)
        self.teacher = MomentumCopy(nn.Sequential(encoder, self.projector))
        self.temperature = temperature
        self.momentum = momentum
        self.final_momentum = momentum if final_momentum is None else final_momentum
        self.patient_positives = patient_positives
        self.exclude_own_patient = exclude_own_patient

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """See :meth:`SSLMethod.forward`; needs two views.

        Also returns ``"positive_similarity"``, the mean cosine of queries and their keys, in [-1, 1].
        """
        x = torch.cat(check_views(self, batch["views"]))  # both views share BatchNorm's batch
        related = relatives(batch, self.patient_positives, self.exclude_own_patient)
        projected = self.projector(self.encoder(x))
        query_1, query_2 = normalize(self.predictor(projected).float()).chunk(2)
        key_1, key_2 = normalize(self.teacher(x).float()).chunk(2)
        loss = self._contrast(query_1, key_2, related) + self._contrast(query_2, key_1, related)
        return {
            "loss": loss,
            "embedding": normalize(projected.detach().float()).chunk(2)[0],
            "positive_similarity": (query_1.detach() * key_2).sum(dim=1).mean(),
        }

    def _contrast(self, query: Tensor, key: Tensor, related: Relatives) -> Tensor:
        """2 t CE of unit queries and keys (B, D), over the keys of all processes."""
        keys, sizes = gather_rows(key)
        if len(keys) < 2:
            raise ValueError("MoCoV3 needs at least two images in a batch: with one there are no negatives")
        own = torch.zeros(len(key), len(keys), dtype=torch.bool, device=key.device)
        own.diagonal(_first_row(sizes)).fill_(True)
        if related.patient is not None:
            own |= related.patient[:, None] == gather_rows(related.patient)[0]
        # The own key is the positive, which stands apart from the negatives.
        options = {"temperature": self.temperature, "normalized": True, "negative_mask": own}
        loss, partner = info_nce(query, key, keys, **options), related.partners()
        if partner is not None:  # who has none is its own, so that the mean of both is its plain loss
            loss = (loss + info_nce(query, key[partner], keys, **options)) / 2
        return 2 * self.temperature * loss

    def after_step(self, progress: float) -> None:
        """Move the teacher towards encoder and projector."""
        momentum = cosine_momentum(self.momentum, self.final_momentum, progress)
        self.teacher.update(nn.Sequential(self.encoder, self.projector), momentum)


def _first_row(sizes: list[int]) -> int:
    """Place of this process' first row among those of all."""
    return sum(sizes[: torch.distributed.get_rank()]) if len(sizes) > 1 else 0
