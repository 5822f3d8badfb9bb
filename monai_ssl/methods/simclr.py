# SPDX-License-Identifier: Apache-2.0
"""SimCLR: tell an image's other view from all other images of the batch.

Chen, Kornblith, Norouzi, Hinton, *A Simple Framework for Contrastive Learning of Visual Representations*, ICML 2020,
arXiv 2002.05709, equation 1 and algorithm 1. With views x_i, x_j of one image, encoder f and projection head g::

    h = f(x)        z = g(h)        s(a, b) = a . b / (|a| |b|)
    l(i, j) = -log( exp(s(z_i, z_j) / t) / sum over k != i of exp(s(z_i, z_k) / t) )        over all 2N views
    L = mean of l(i, j) and l(j, i) over the images
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from monai_ssl.networks import ImageEncoder, MLPHead, forward_by_size

from .base import SSLMethod
from .positives import contrast_views, relatives
from .requirements import check_views

__all__ = ["SimCLR"]


class SimCLR(SSLMethod):
    """Contrast of the views of a batch, without teacher and without queue.

    The paper's recipe: batch 4,096, LARS, learning rate 0.3 for each 256 images of it, weight decay 1e-6, 10 epochs of
    warm-up, then a cosine schedule, 100 to 1,000 epochs, BatchNorm over all processes
    (``PretrainTrainer(synchronize_batch_norm=True)``). Only the batch gives negatives, so a larger one is better, and a
    longer training makes up for a smaller one (section 5.2). On one GPU and some thousand images: batches of 64 to 256,
    AdamW at 1e-3 with weight decay 0.05, some hundred epochs.

    With more than two views the loss is the mean of L over all pairs; smaller crops (views of another size than the
    first) are paired with those of the first one's size only.

    Args:
        encoder: the network to pretrain.
        temperature: t, positive; 0.1 in the paper's runs on ImageNet, 0.5 in those on CIFAR-10.
        head_layers: linear layers of the head, with ReLU between them: 2, in SimCLR v2 (arXiv 2006.10029) 3.
        head_features: width of the hidden layers; None: that of the encoder's features, as in the paper.
        head_batch_norm: BatchNorm after each layer of the head, as in the released code, whose last one has a scale;
            ours has neither scale nor shift. The paper's text has none.
        embedding_dim: D.
        patient_positives: images of one patient in the batch are positives of one another. Needs ``batch["group_id"]``
            or ``batch["positive_id"]``, see :func:`~monai_ssl.methods.relatives`, and a sampler that pairs them
            (:class:`monai_ssl.data.EpochSampler` with ``groups``). Implies ``exclude_own_patient``. A batch of one
            patient only has no negatives left: its loss pulls together and nothing more.
        exclude_own_patient: other images of the patient are no negatives.

    Raises:
        ValueError: a temperature that is not positive, or a head without layers.

    Example:
        >>> import torch
        >>> from monai_ssl.networks import build_encoder
        >>> method = SimCLR(build_encoder("resnet18"))
        >>> out = method({"views": [torch.rand(4, 1, 32, 32), torch.rand(4, 1, 32, 32)]})
        >>> out["embedding"].shape
        torch.Size([4, 128])
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        *,
        temperature: float = 0.1,
        head_layers: int = 2,
        head_features: int | None = None,
        head_batch_norm: bool = False,
        embedding_dim: int = 128,
        patient_positives: bool = False,
        exclude_own_patient: bool = False,
    ) -> None:
        super().__init__(encoder)
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.head = MLPHead(
            encoder.num_features,
            head_features or encoder.num_features,
            embedding_dim,
            num_layers=head_layers,
            batch_norm=head_batch_norm,
            final_batch_norm=head_batch_norm,
        )
        self.temperature = temperature
        self.patient_positives = patient_positives
        self.exclude_own_patient = exclude_own_patient

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """See :meth:`SSLMethod.forward`; needs two views or more.

        Also returns ``"positive_similarity"``, the mean cosine of the pairs, in [-1, 1].
        """
        views = check_views(self, batch["views"], most=None)
        related = relatives(batch, self.patient_positives, self.exclude_own_patient)
        large = [view.shape == views[0].shape for view in views]
        embeddings = forward_by_size(lambda x: self.head(self.encoder(x)), views)
        pairs = [(i, j) for i, j in combinations(range(len(views)), 2) if large[i] or large[j]]
        losses = [contrast_views(embeddings[i], embeddings[j], related, self.temperature) for i, j in pairs]
        embedding = normalize(embeddings[0].detach().float())
        return {
            "loss": torch.stack(losses).mean(),
            "embedding": embedding,
            "positive_similarity": cosine_similarity(embedding, embeddings[1].detach().float()).mean(),
        }
