# SPDX-License-Identifier: Apache-2.0
"""DINO: self-distillation with no labels.

Caron, Touvron, Misra, Jegou, Mairal, Bojanowski, Joulin, *Emerging Properties in Self-Supervised Vision Transformers*,
ICCV 2021, arXiv 2104.14294, equations 1 to 4 and algorithm 1. With large crops x1, x2, small crops x3 to xV, student f,
teacher g (both an encoder and a head of K outputs), centre c and temperatures u and w::

    q_a = softmax((g(x_a) - c) / u)      a = 1, 2; u rises from 0.04 to 0.07
    p_b = softmax(f(x_b) / w)            b = 1, ..., V; w = 0.1
    L   = mean over a, b != a and images of -sum_k q_a[k] log p_b[k]
    step the student; g <- m g + (1 - m) f, m from 0.996 to 1 along a cosine; c <- 0.9 c + 0.1 mean g(x_a)
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from monai_ssl.losses import distillation
from monai_ssl.networks import ImageEncoder, forward_by_size

from .requirements import multi_crop
from .self_distillation import SelfDistillation

__all__ = ["DINO"]


class DINO(SelfDistillation):
    """Predict the code that a slow copy of the network gives to another crop of the image.

    Any encoder will do, in 2D or 3D. The paper's ViT hands the head its class token, its ResNet the pooled features;
    here it is the encoder's pooled vector, of a ViT the mean of its patch tokens, so that the weights have the keys of
    the ViT in MONAI's UNETR. Small crops need ``build_encoder("vit", ..., interpolate_positions=True)``.

    The defaults are the paper's for a ViT. Its recipe beside them: AdamW, learning rate 5e-4 for each 256 images of a
    batch of 1,024, rising over 10 epochs and falling along a cosine to 1e-6, weight decay from 0.04 to 0.4 along a
    cosine, gradients clipped, 100 to 800 epochs of 1.28 million images; 2 crops of 224 pixels and 8 or more of 96.

    A pool of some thousand images on one GPU wants less: ``num_outputs`` of 1,024 to 4,096, ``hidden_features`` of 512
    to 1,024, batches of 32 or more, AdamW with 2.5e-4 to 5e-4 after a warm-up, gradients clipped at 3, a momentum of
    0.99 to 0.996, and a ResNet rather than a ViT. The loss first falls and then rises towards log K, until the centre
    has found its place; it falls again as the images' codes part, which they do by up to w / u for every 1 / (1 - m)
    steps. A training that is short beside that wants a lower m, with ``centering="sinkhorn"``, as the mean lags behind
    a fast teacher. Where ``teacher_entropy`` stays at log K, keep ``teacher_temperature`` at (0.04, 0.04); where
    ``outputs_used`` falls to 1, lower the learning rate.

    Args:
        encoder: the network to pretrain.
        num_outputs: K; the loss begins near log K.
        hidden_features: see :class:`SelfDistillation`, also for the other arguments.
        bottleneck_features: D, length of the embedding.
        head_batch_norm: BatchNorm in the head.
        student_temperature: w.
        teacher_temperature: u at the start, and after the warm-up.
        temperature_warmup: share of the training; 30 of 100 epochs in the paper.
        freeze_last_layer: share of the training; 1 of 100 epochs in the paper.
        momentum: m at the start.
        final_momentum: m at the end.
        centering: how codes are kept apart.
        center_momentum: of c.

    Example:
        >>> import torch
        >>> from monai_ssl.networks import build_encoder
        >>> method = DINO(build_encoder("resnet10"), num_outputs=64, hidden_features=32, bottleneck_features=16)
        >>> views = [torch.rand(4, 1, size, size) for size in (32, 32, 16, 16)]
        >>> out = method({"views": views})
        >>> out["loss"].backward()
        >>> method.after_step(progress=0.1)
        >>> out["embedding"].shape
        torch.Size([4, 16])
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        *,
        num_outputs: int = 65536,
        hidden_features: int = 2048,
        bottleneck_features: int = 256,
        head_batch_norm: bool = False,
        student_temperature: float = 0.1,
        teacher_temperature: tuple[float, float] = (0.04, 0.07),
        temperature_warmup: float = 0.3,
        freeze_last_layer: float = 0.01,
        momentum: float = 0.996,
        final_momentum: float = 1.0,
        centering: Literal["mean", "sinkhorn"] = "mean",
        center_momentum: float = 0.9,
    ) -> None:
        super().__init__(
            encoder,
            num_outputs=num_outputs,
            hidden_features=hidden_features,
            bottleneck_features=bottleneck_features,
            head_batch_norm=head_batch_norm,
            student_temperature=student_temperature,
            teacher_temperature=teacher_temperature,
            temperature_warmup=temperature_warmup,
            freeze_last_layer=freeze_last_layer,
            momentum=momentum,
            final_momentum=final_momentum,
            centering=centering,
            center_momentum=center_momentum,
        )

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """See :meth:`SSLMethod.forward`; takes two large views of one size, then any number of smaller ones.

        Returns:
            ``"loss"``; ``"embedding"`` and ``"embedding_pair"``: (B, D), unit vectors, before the head's last
            layer, of the two large views; what :meth:`SelfDistillation.health` tells.

        Raises:
            ValueError: the views are not so, or do not fit the encoder.
        """
        views = batch["views"]
        large, _ = multi_crop(self, views)
        codes = self.teach(large)
        features = torch.cat(forward_by_size(self.encoder, views))  # (V B, F)
        embedded = self.head.embed(features)
        scores = self.head.score(embedded, self.last_layer_is_frozen).unflatten(0, (len(views), -1))  # (V, B, K)
        loss = distillation(scores, codes, self.student_temperature)
        first, second = embedded.detach().unflatten(0, (len(views), -1))[:2]
        return {"loss": loss, "embedding": first, "embedding_pair": second, **self.health(codes, loss)}

    @torch.no_grad()
    def teach(self, large: Tensor) -> Tensor:
        """Return the codes (2, B, K) of large views (2 B, C, *spatial)."""
        teacher = self.teacher.module
        outputs = teacher["head"](teacher["encoder"](large))
        return self.codes(outputs.unflatten(0, (2, -1)), self.teacher_temperature)
