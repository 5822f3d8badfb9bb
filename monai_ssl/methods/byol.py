# SPDX-License-Identifier: Apache-2.0
"""BYOL, "Bootstrap Your Own Latent": predict what a slowly following copy of the network says of the other view.

Grill, Strub, Altché, Tallec, Richemond et al., *Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning*,
NeurIPS 2020, arXiv 2006.07733, section 3. With views v and v', online network f (encoder and projector), predictor q,
target network f' and n(.) = L2 normalisation::

    p  = q(f(v))                        t' = f'(v')             no gradient to the target
    L  = |n(p) - n(t')|^2                                       equation 2
    L~ = the same with v and v' swapped
    minimise L + L~ over f and q

    f' <- m f' + (1 - m) f              after each step         equation 1
    m  = 1 - (1 - m0) (cos(pi k / K) + 1) / 2                   step k of K, section 3.3

Nothing but the predictor and the slow target keep the embeddings from collapsing;
:class:`monai_ssl.handlers.CollapseMonitor` watches them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import normalize

from monai_ssl.losses import CosineRegressionLoss
from monai_ssl.networks import ImageEncoder, MLPHead, MomentumCopy, cosine_momentum

from .base import SSLMethod
from .positives import relatives
from .requirements import check_momentum, view_pair

__all__ = ["BYOL"]


class BYOL(SSLMethod):
    """Predict the target network's projection of the other view, in both directions.

    Both views pass through each network as one batch: BatchNorm's statistics are those of both.

    The defaults are the paper's: two-layer projector and predictor, 4096 to 256, with BatchNorm after the first layer,
    momentum 0.996 rising to 1. The recipe beside them: LARS, learning rate 0.2 x batch / 256, weight decay 1.5e-6
    (neither for biases and BatchNorm), batch 4096, 1000 epochs, cosine schedule after 10 epochs of warm-up; the paper
    finds little change down to batches of 256.

    Args:
        encoder: the network to pretrain.
        hidden_features: width of the hidden layers of projector and predictor.
        embedding_dim: D, length of projection and prediction.
        momentum: m0, of the target's first updates, in [0, 1].
        final_momentum: m at the end of the training; None keeps it constant.
        patient_positives: predict the target's projection of another image of the same patient in the batch, where
            there is one, see :func:`monai_ssl.methods.positives.relatives`.

    Raises:
        ValueError: a momentum is outside [0, 1].

    Example:
        >>> import torch
        >>> from monai_ssl.networks import build_encoder
        >>> method = BYOL(build_encoder("resnet18"), hidden_features=64, embedding_dim=32)
        >>> out = method({"views": [torch.rand(4, 1, 32, 32), torch.rand(4, 1, 32, 32)]})
        >>> out["loss"].backward()
        >>> method.after_step(progress=0.1)
        >>> tuple(out["embedding"].shape), 0 <= out["loss"].item() <= 8
        ((4, 32), True)
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        *,
        hidden_features: int = 4096,
        embedding_dim: int = 256,
        momentum: float = 0.996,
        final_momentum: float | None = 1.0,
        patient_positives: bool = False,
    ) -> None:
        super().__init__(encoder)
        check_momentum(momentum=momentum, final_momentum=final_momentum)
        self.projector = MLPHead(encoder.num_features, hidden_features, embedding_dim, batch_norm=True)
        self.predictor = MLPHead(embedding_dim, hidden_features, embedding_dim, batch_norm=True)
        self.target = MomentumCopy(nn.Sequential(self.encoder, self.projector))
        self.criterion = CosineRegressionLoss()
        self.momentum = momentum
        self.final_momentum = momentum if final_momentum is None else final_momentum
        self.patient_positives = patient_positives

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """See :meth:`SSLMethod.forward`; takes two views of one size.

        Returns:
            ``"loss"``, in [0, 8], about 4 for unrelated projections; ``"embedding"`` and ``"embedding_pair"``: the
            online projections of the first and the second views.

        Raises:
            ValueError: the views are not two of one size that fit the encoder, or ``patient_positives`` is on and the
                batch does not say whose the images are.
        """
        x = view_pair(self, batch["views"])
        partner = relatives(batch, self.patient_positives, False).partners(batch.get("generator"))
        projection = self.projector(self.encoder(x))
        prediction_1, prediction_2 = self.predictor(projection).chunk(2)
        target_1, target_2 = self.target(x).chunk(2)
        if partner is not None:
            target_1, target_2 = target_1[partner], target_2[partner]
        loss = self.criterion(prediction_1, target_2) + self.criterion(prediction_2, target_1)
        embedding, embedding_pair = normalize(projection.detach().float()).chunk(2)
        return {"loss": loss, "embedding": embedding, "embedding_pair": embedding_pair}

    def after_step(self, progress: float) -> None:
        """Move the target towards the online network."""
        online = nn.Sequential(self.encoder, self.projector)
        self.target.update(online, cosine_momentum(self.momentum, self.final_momentum, progress))
