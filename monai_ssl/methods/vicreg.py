# SPDX-License-Identifier: Apache-2.0
"""VICReg: views agree (invariance), each dimension keeps its spread (variance), and dimensions differ (covariance).

Bardes, Ponce, LeCun, *VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning*, ICLR 2022,
arXiv 2105.04906, section 4. With views x and x', f (encoder and expander), d dimensions::

    Z = f(x),  Z' = f(x')
    s = mean |Z - Z'|^2 / d
    v(Z) = mean over dimensions of max(0, 1 - std)              over the batch
    c(Z) = sum of the squared off-diagonal covariances / d      over the batch
    L = 25 s(Z, Z') + 25 (v(Z) + v(Z')) + (c(Z) + c(Z'))

The formulas in full: :mod:`monai_ssl.losses.vicreg`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import normalize

from monai_ssl.losses import VICRegLoss
from monai_ssl.networks import ImageEncoder, MLPHead

from .base import SSLMethod
from .positives import relatives
from .requirements import view_pair

__all__ = ["VICReg"]


class VICReg(SSLMethod):
    """Variance-invariance-covariance regularisation of two views' features.

    Both views pass through the network as one batch. Variance and covariance are those of the whole batch over all
    processes.

    The defaults are the paper's: weights 25, 25 and 1, and an expander of three layers of 8192, BatchNorm and ReLU
    after the first two. The recipe beside them: LARS, learning rate 0.2 x batch / 256, weight decay 1e-6, batch 2048,
    1000 epochs, cosine schedule after 10 epochs of warm-up. With a ResNet-18 the default expander has 138 million
    parameters, twelve times the encoder's, and with 2048 features 9 million. Below 4096 images a batch no matrix of
    8192 x 8192 is formed.

    Args:
        encoder: the network to pretrain.
        hidden_features: width of the expander's hidden layers.
        embedding_dim: d.
        invariance_weight: of s, at least 0.
        variance_weight: of v, at least 0.
        covariance_weight: of c, at least 0.
        patient_positives: let the second view be of another image of the same patient in the batch, where there is one,
            see :func:`monai_ssl.methods.positives.relatives`.

    Raises:
        ValueError: a weight is negative.

    Example:
        >>> import torch
        >>> from monai_ssl.networks import build_encoder
        >>> method = VICReg(build_encoder("resnet18"), hidden_features=64, embedding_dim=64)
        >>> out = method({"views": [torch.rand(4, 1, 32, 32), torch.rand(4, 1, 32, 32)]})
        >>> out["loss"].backward()
        >>> sorted(name for name in out if out[name].ndim == 0)
        ['covariance', 'invariance', 'loss', 'variance']
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        *,
        hidden_features: int = 8192,
        embedding_dim: int = 8192,
        invariance_weight: float = 25.0,
        variance_weight: float = 25.0,
        covariance_weight: float = 1.0,
        patient_positives: bool = False,
    ) -> None:
        super().__init__(encoder)
        self.expander = MLPHead(
            encoder.num_features, hidden_features, embedding_dim, num_layers=3, batch_norm=True, final_bias=False
        )
        self.criterion = VICRegLoss(invariance_weight, variance_weight, covariance_weight)
        self.patient_positives = patient_positives

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """See :meth:`SSLMethod.forward`; takes two views of one size.

        Returns:
            ``"loss"``; ``"invariance"``, ``"variance"`` and ``"covariance"``: its terms without their weights, the
            latter two summed over both views; ``"embedding"`` and ``"embedding_pair"``: the first and second views'
            features behind the expander.

        Raises:
            ValueError: the views are not two of one size that fit the encoder, there is only one image, or
                ``patient_positives`` is on and the batch does not say whose the images are.
        """
        x = view_pair(self, batch["views"])
        partner = relatives(batch, self.patient_positives, False).partners(batch.get("generator"))
        z_a, z_b = self.expander(self.encoder(x)).chunk(2)
        invariance, variance, covariance = self.criterion.terms(z_a, z_b if partner is None else z_b[partner])
        return {
            "loss": self.criterion.weigh(invariance, variance, covariance),
            "embedding": normalize(z_a.detach().float()),
            "embedding_pair": normalize(z_b.detach().float()),
            "invariance": invariance.detach(),
            "variance": variance.detach(),
            "covariance": covariance.detach(),
        }
