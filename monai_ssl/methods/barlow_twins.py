# SPDX-License-Identifier: Apache-2.0
"""Barlow Twins: two views' features agree in each dimension, and no two dimensions say the same.

Zbontar, Jing, Misra, LeCun, Deny, *Barlow Twins: Self-Supervised Learning via Redundancy Reduction*, ICML 2021, arXiv
2103.03230, section 2. With views Y^A and Y^B, f (encoder and projector)::

    Z^A = f(Y^A),  Z^B = f(Y^B)
    C_ij = correlation over the batch of dimension i of Z^A and dimension j of Z^B          equation 2
    L = sum_i (1 - C_ii)^2 + lambda sum_{i != j} C_ij^2                                     equation 1
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import normalize

from monai_ssl.losses import RedundancyReductionLoss
from monai_ssl.networks import ImageEncoder, MLPHead

from .base import SSLMethod
from .positives import relatives
from .requirements import view_pair

__all__ = ["BarlowTwins"]


class BarlowTwins(SSLMethod):
    """Bring the cross-correlation of two views' features near the identity.

    Both views pass through the network as one batch. The correlation is that of the whole batch over all processes.

    The defaults are the paper's: lambda 5e-3 and a projector of three layers of 8192, BatchNorm and ReLU after the
    first two. The recipe beside them: LARS, learning rate 0.2 x batch / 256 for weights and 0.0048 x batch / 256 for
    biases and BatchNorm, weight decay 1.5e-6 for the weights, batch 2048 (256 does nearly as well), 1000 epochs, cosine
    schedule to a thousandth after 10 epochs of warm-up. The features want to be many, in the paper more always helped.
    With a ResNet-18 the default projector has 138 million parameters, twelve times the encoder's, and with 2048
    features 9 million. Below 4096 images a batch no matrix of 8192 x 8192 is formed.

    Args:
        encoder: the network to pretrain.
        hidden_features: width of the projector's hidden layers.
        embedding_dim: D.
        redundancy_weight: lambda, at least 0.
        patient_positives: let the second view be of another image of the same patient in the batch, where there is one,
            see :func:`monai_ssl.methods.positives.relatives`.

    Raises:
        ValueError: ``redundancy_weight`` is negative.

    Example:
        >>> import torch
        >>> from monai_ssl.networks import build_encoder
        >>> method = BarlowTwins(build_encoder("resnet18"), hidden_features=64, embedding_dim=64)
        >>> out = method({"views": [torch.rand(4, 1, 32, 32), torch.rand(4, 1, 32, 32)]})
        >>> out["loss"].backward()
        >>> tuple(out["embedding"].shape), bool(out["loss"] >= out["invariance"])
        ((4, 64), True)
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        *,
        hidden_features: int = 8192,
        embedding_dim: int = 8192,
        redundancy_weight: float = 5e-3,
        patient_positives: bool = False,
    ) -> None:
        super().__init__(encoder)
        self.projector = MLPHead(
            encoder.num_features, hidden_features, embedding_dim, num_layers=3, batch_norm=True, final_bias=False
        )
        self.criterion = RedundancyReductionLoss(redundancy_weight)
        self.patient_positives = patient_positives

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """See :meth:`SSLMethod.forward`; takes two views of one size.

        Returns:
            ``"loss"``; ``"invariance"`` and ``"redundancy"``: its two sums, the second without lambda; ``"embedding"``
            and ``"embedding_pair"``: the projections of the first and the second views.

        Raises:
            ValueError: the views are not two of one size that fit the encoder, there is only one image, or
                ``patient_positives`` is on and the batch does not say whose the images are.
        """
        x = view_pair(self, batch["views"])
        partner = relatives(batch, self.patient_positives, False).partners(batch.get("generator"))
        z_a, z_b = self.projector(self.encoder(x)).chunk(2)
        invariance, redundancy = self.criterion.terms(z_a, z_b if partner is None else z_b[partner])
        return {
            "loss": invariance + self.criterion.redundancy_weight * redundancy,
            "embedding": normalize(z_a.detach().float()),
            "embedding_pair": normalize(z_b.detach().float()),
            "invariance": invariance.detach(),
            "redundancy": redundancy.detach(),
        }
