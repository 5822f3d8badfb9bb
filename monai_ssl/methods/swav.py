# SPDX-License-Identifier: Apache-2.0
"""SwAV: clustering while learning, by predicting the cluster of one view from another.

Caron, Misra, Mairal, Goyal, Bojanowski, Joulin, *Unsupervised Learning of Visual Features by Contrasting Cluster
Assignments*, NeurIPS 2020, arXiv 2006.09882. With views v = 1 ... V of an image, of which the first two are large,
encoder f, projector g, K unit prototypes C, and n(.) = L2 normalisation::

    z_v = n(g(f(x_v)))
    s_v = z_v C^T                                       K cosines
    q_a = Sinkhorn(s_a / epsilon),  a = 1, 2            no gradient; equations 3 to 5
    L   = mean over a, mean over v != a of
          - sum_k q_a[k] log softmax(s_v / t)[k]        equation 2; section 3.2 for more than two views

A small batch is assigned together with a queue of features of earlier batches, of which only the batch's own codes are
used (section 3.1, "Working with small batches").
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from monai_ssl.networks import ImageEncoder

from .online_clustering import OnlineClustering
from .requirements import check_views

__all__ = ["SwAV"]


class SwAV(OnlineClustering):
    """Swap the cluster assignments of an image's views.

    The defaults are the paper's for a batch of 4096: LARS, learning rate 4.8 with 10 epochs of warm-up and a cosine
    schedule to 0.0048, weight decay 1e-6, 2 views of 224 and 6 of 96 pixels by
    :func:`monai_ssl.transforms.multi_crop_views`; the prototypes stand still for the first epoch, 313 steps. For a
    batch of 256 on one machine: learning rate 0.6 to 0.0006 without warm-up, ``freeze_steps`` 5,005, again one epoch,
    ``queue_size=3840`` used from epoch 15 of 200 on.

    For some thousand images on one GPU: AdamW, learning rate 1e-3 with warm-up and cosine schedule, weight decay 1e-4;
    ``freeze_steps`` one epoch; ``hidden_features=512``; and no more prototypes than images that are assigned at once,
    batch and queue: ``num_prototypes=64`` with a batch of 64. Fewer images can't use the prototypes alike, which the
    log says once, after the first step.

    A loss that stays at ``log K`` or above means that all images have one embedding.

    Args:
        encoder: the network to pretrain.
        num_prototypes: K, several times the kinds of images that there may be.
        temperature: t, positive.
        epsilon: of the codes, positive; smaller makes them harder. Keep it below the temperature.
        sinkhorn_iterations: rounds of Sinkhorn's normalisation.
        embedding_dim: D, length of the embedding.
        hidden_features: width of the projector's hidden layer (with BatchNorm and ReLU).
        freeze_steps: optimiser steps during which the prototypes do not move; see :class:`Prototypes`.
        queue_size: features kept for the assignment, of each of the two large views; 0 is no queue. Over all processes:
            each one holds them all and assigns its share.
        queue_start: share of the training, in [0, 1], after which the queue is used, once it is full.
        queue_start_step: number of optimiser steps that replaces it; None: the share.

    Raises:
        ValueError: a number is out of its range.

    Example:
        >>> from monai_ssl.networks import build_encoder
        >>> method = SwAV(build_encoder("resnet18"), num_prototypes=8, hidden_features=64)
        >>> sizes = (32, 32, 16, 16, 16)
        >>> out = method({"views": [torch.rand(8, 1, size, size) for size in sizes]})
        >>> out["loss"].backward()
        >>> method.after_step(progress=0.1)
        >>> out["embedding"].shape
        torch.Size([8, 128])
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        *,
        num_prototypes: int = 3000,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        sinkhorn_iterations: int = 3,
        embedding_dim: int = 128,
        hidden_features: int = 2048,
        freeze_steps: int = 313,
        queue_size: int = 0,
        queue_start: float = 0.075,
        queue_start_step: int | None = None,
    ) -> None:
        super().__init__(
            encoder,
            num_prototypes=num_prototypes,
            temperature=temperature,
            epsilon=epsilon,
            sinkhorn_iterations=sinkhorn_iterations,
            embedding_dim=embedding_dim,
            hidden_features=hidden_features,
            freeze_steps=freeze_steps,
            queue_size=queue_size,
            queue_start=queue_start,
            queue_start_step=queue_start_step,
        )

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """See :meth:`SSLMethod.forward`; needs two large views, and takes any number of small ones after them.

        Also returns ``"agreement"``, the share of images whose large views are both nearest to one prototype, and
        ``"code_entropy"``, from 0 (hard codes) to log K (all prototypes alike).

        Raises:
            ValueError: there are fewer than two views, or they do not fit each other or the encoder.
        """
        views = check_views(self, batch["views"], most=None)
        one_source = torch.zeros(len(views[0]), dtype=torch.int64, device=views[0].device)
        return self.swap(views, one_source)[0]
