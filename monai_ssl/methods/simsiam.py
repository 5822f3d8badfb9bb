# SPDX-License-Identifier: Apache-2.0
"""SimSiam: predict the network's own projection of the other view, which gets no gradient.

Chen & He, *Exploring Simple Siamese Representation Learning*, CVPR 2021, arXiv 2011.10566, section 3. With views x1 and
x2, f (encoder and projector), predictor h and stop-gradient sg::

    z = f(x),  p = h(z)
    D(p, z) = -cos(p, sg(z))                            equations 1 and 3
    L = D(p1, z2) / 2 + D(p2, z1) / 2                   equation 4

Nothing but predictor and stop-gradient keep the embeddings from collapsing;
:class:`monai_ssl.handlers.CollapseMonitor` watches them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import normalize

from monai_ssl.losses import NegativeCosineLoss
from monai_ssl.networks import ImageEncoder, MLPHead

from .base import SSLMethod
from .positives import relatives
from .requirements import view_pair

__all__ = ["SimSiam"]


class SimSiam(SSLMethod):
    """Predict the projection of the other view, in both directions.

    Both views pass through the network as one batch: BatchNorm's statistics are those of both.

    The defaults are the paper's: a projector of three layers of 2048 with BatchNorm after each (the last without ReLU,
    scale and shift), a predictor 2048 - 512 - 2048 with BatchNorm in its hidden layer. The recipe beside them: SGD with
    momentum 0.9, learning rate 0.05 x batch / 256 on a cosine schedule, weight decay 1e-4, batch 512 (256 does as
    well), 100 to 800 epochs. The predictor's rate is constant (section 4.2): :meth:`parameter_groups`.

    Args:
        encoder: the network to pretrain.
        hidden_features: width of the projector's hidden layers.
        embedding_dim: D, length of projection and prediction.
        predictor_features: width of the predictor's hidden layer; a quarter of ``embedding_dim`` in the paper.
        patient_positives: predict the projection of another image of the same patient in the batch, where there is one,
            see :func:`monai_ssl.methods.positives.relatives`.

    Example:
        >>> import torch
        >>> from monai_ssl.networks import build_encoder
        >>> method = SimSiam(build_encoder("resnet18"), hidden_features=64, embedding_dim=64, predictor_features=16)
        >>> out = method({"views": [torch.rand(4, 1, 32, 32), torch.rand(4, 1, 32, 32)]})
        >>> out["loss"].backward()
        >>> tuple(out["embedding"].shape), -1 <= out["loss"].item() <= 1
        ((4, 64), True)
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        *,
        hidden_features: int = 2048,
        embedding_dim: int = 2048,
        predictor_features: int = 512,
        patient_positives: bool = False,
    ) -> None:
        super().__init__(encoder)
        self.projector = MLPHead(
            encoder.num_features, hidden_features, embedding_dim, num_layers=3, batch_norm=True, final_batch_norm=True
        )
        self.predictor = MLPHead(embedding_dim, predictor_features, embedding_dim, batch_norm=True)
        self.criterion = NegativeCosineLoss()
        self.patient_positives = patient_positives

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """See :meth:`SSLMethod.forward`; takes two views of one size.

        Returns:
            ``"loss"``, in [-1, 1], about 0 for unrelated projections; ``"embedding"`` and ``"embedding_pair"``: the
            projections of the first and the second views.

        Raises:
            ValueError: the views are not two of one size that fit the encoder, or ``patient_positives`` is on and the
                batch does not say whose the images are.
        """
        x = view_pair(self, batch["views"])
        partner = relatives(batch, self.patient_positives, False).partners(batch.get("generator"))
        projection = self.projector(self.encoder(x))
        prediction_1, prediction_2 = self.predictor(projection).chunk(2)
        target_1, target_2 = projection.detach().chunk(2)
        if partner is not None:
            target_1, target_2 = target_1[partner], target_2[partner]
        loss = self.criterion(prediction_1, target_2) / 2 + self.criterion(prediction_2, target_1) / 2
        embedding, embedding_pair = normalize(projection.detach().float()).chunk(2)
        return {"loss": loss, "embedding": embedding, "embedding_pair": embedding_pair}

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return the parameters, those of the predictor in groups whose learning rate stays constant."""
        own = set(self.predictor.parameters())
        groups = super().parameter_groups(weight_decay)
        scheduled = [group | {"params": [p for p in group["params"] if p not in own]} for group in groups]
        constant = [
            group | {"params": [p for p in group["params"] if p in own], "constant_lr": True} for group in groups
        ]
        return scheduled + constant
