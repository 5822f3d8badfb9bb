# SPDX-License-Identifier: Apache-2.0
"""ConVIRT: tell which sentence of the reports belongs to which image.

Zhang, Jiang, Miura, Manning, Langlotz, *Contrastive Learning of Medical Visual Representations from Paired Images and
Text*, MLHC 2022, arXiv 2010.00747. For a random view x of an image and a random sentence r of its report, encoders
f and projectors g (equations 1 to 4)::

    v = g_v(f_v(x))        u = g_u(f_u(r))        s(i, j) = cos(v_i, u_j) / t
    l_vu(i) = -log( exp(s(i, i)) / sum over j of exp(s(i, j)) )        which of the batch's sentences is the image's
    l_uv(i) = -log( exp(s(i, i)) / sum over j of exp(s(j, i)) )        which of the batch's images is the sentence's
    L = mean over i of lambda l_vu(i) + (1 - lambda) l_uv(i)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from monai_ssl.losses import ImageTextContrastLoss, nt_xent
from monai_ssl.networks import ImageTextModel, MLPHead, forward_by_size

from .base import SSLMethod
from .requirements import check_views

__all__ = ["ConVIRT"]


class ConVIRT(SSLMethod):
    """Contrast of images with sentences of their reports, over the pairs of a batch.

    The paper's recipe: ResNet-50 from ImageNet weights, ClinicalBERT with its embeddings and first 6 layers frozen and
    maximum pooling, batches of 32, Adam at 1e-4 with weight decay 1e-6; the rate is halved where the validation loss
    has not fallen in 5 evaluations, and the weights of the lowest one are kept
    (:class:`monai_ssl.handlers.ValidationLoss`).

    A batch has ``"tokens"`` (B, T) int64 and ``"token_mask"`` (B, T) bool, True for real tokens, beside its views:
    :class:`monai_ssl.data.ReportDataset` and :class:`monai_ssl.data.ReportCollate` give them. Of several views each is
    contrasted with the sentences, and the loss is their mean.

    Args:
        model: both encoders and projectors.
        temperature: t, positive.
        image_to_text_weight: lambda, in [0, 1]; 0.5 is CLIP's.
        learn_temperature: learn t from ``temperature`` on, as CLIP does (arXiv 2103.00020; it starts at 0.07).
        exclude_own_study: pairs of one study are no negatives of one another. Needs ``batch["study_id"]`` (B,). Not in
            the paper; a sampler that never puts two images of a study into one batch makes it needless in one process.
        soft_targets: sentences of the same words are all right answers. Needs ``batch["text_id"]`` (B,). Not in the
            paper, see :func:`monai_ssl.losses.image_text_contrast`.
        image_weight: of an added contrast of the first two views with each other, NT-Xent on a projector of its own, as
            in SLIP (Mu et al., arXiv 2112.12750, weight 1); 0 is ConVIRT.
        image_temperature: of that contrast.

    Raises:
        ValueError: a number is out of its range.

    Example:
        >>> from monai_ssl.networks import TextTransformer, build_encoder
        >>> method = ConVIRT(ImageTextModel(build_encoder("resnet18"), TextTransformer(vocab_size=50)))
        >>> tokens = torch.tensor([[2, 7, 9, 3], [2, 11, 3, 0]])
        >>> out = method({"views": [torch.rand(2, 1, 32, 32)], "tokens": tokens, "token_mask": tokens != 0})
        >>> out["embedding"].shape
        torch.Size([2, 512])
    """

    def __init__(
        self,
        model: ImageTextModel,
        *,
        temperature: float = 0.1,
        image_to_text_weight: float = 0.75,
        learn_temperature: bool = False,
        exclude_own_study: bool = False,
        soft_targets: bool = False,
        image_weight: float = 0.0,
        image_temperature: float = 0.1,
    ) -> None:
        super().__init__(model.image_encoder)
        if not image_weight >= 0 or not image_temperature > 0:
            raise ValueError(
                f"image_weight must be at least 0 and image_temperature positive, got {image_weight} and "
                f"{image_temperature}"
            )
        self.model = model
        self.contrast = ImageTextContrastLoss(temperature, image_to_text_weight, learn_temperature, normalized=True)
        width = model.image_encoder.num_features
        self.image_head = MLPHead(width, width) if image_weight else None
        self._ids = ["study_id"] * exclude_own_study + ["text_id"] * soft_targets
        self.image_weight, self.image_temperature = image_weight, image_temperature

    def check_batch(self, batch: Mapping[str, Any]) -> None:
        """See :meth:`SSLMethod.check_batch`: refuses a batch without sentences, or with ones that can't be read."""
        self._check_entries(batch)
        tokens, mask, size = batch["tokens"], batch["token_mask"], len(batch["image"])
        if tokens.ndim != 2 or len(tokens) != size or tokens.is_floating_point():
            raise ValueError(
                f"batch['tokens'] must hold integers ({size}, T), got {tokens.dtype} {tuple(tokens.shape)}"
            )
        if mask.dtype != torch.bool or mask.shape != tokens.shape:
            raise ValueError(
                f"batch['token_mask'] must be bool {tuple(tokens.shape)}, got {mask.dtype} {tuple(mask.shape)}"
            )
        if not mask.any(dim=1).all():
            raise ValueError("batch['token_mask'] has a sentence without a token: images without text must be left out")
        known = self.model.text_encoder.vocab_size
        if tokens.min() < 0 or tokens.max() >= known:
            raise ValueError(
                f"batch['tokens'] has numbers from {tokens.min()} to {tokens.max()}, and the text encoder knows 0 to "
                f"{known - 1}: it is for another tokenizer"
            )

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """See :meth:`SSLMethod.forward`; needs one view or more.

        Also returns the mean over views of: ``"image_to_text_accuracy"`` and ``"text_to_image_accuracy"``, how often
        the right one of this process's batch is the most similar one, in [0, 1], by chance 1 / B; and
        ``"positive_similarity"``, the mean cosine of the pairs, in [-1, 1]. ``"temperature"`` is t;
        ``"image_text_loss"`` and ``"image_loss"`` are the two terms where there are two.
        """
        self._check_entries(batch)
        views = check_views(self, batch["views"], least=2 if self.image_weight else 1, most=None)
        texts = self.model.embed_tokens(batch["tokens"], batch["token_mask"])
        features = forward_by_size(self.encoder, views)
        images = [self.model.project_images(h) for h in features]
        ids = {name: batch[name] for name in self._ids}
        loss = torch.stack([self.contrast(v, texts, **ids) for v in images]).mean()
        out = {"loss": loss, "embedding": images[0].detach(), **_agreement(images, texts)}
        out["temperature"] = torch.as_tensor(self.contrast.temperature, device=loss.device).detach()
        if self.image_weight:
            first, second = (self.image_head(h) for h in features[:2])
            image_loss = nt_xent(first, second, self.image_temperature, gather_distributed=self.training)
            out |= {"image_text_loss": loss.detach(), "image_loss": image_loss.detach()}
            out["loss"] = loss + self.image_weight * image_loss
        return out

    def _check_entries(self, batch: Mapping[str, Any]) -> None:
        for name in ("tokens", "token_mask", *self._ids):
            if name not in batch:
                raise ValueError(
                    f"ConVIRT needs batch[{name!r}]; the batch has {', '.join(batch)}. "
                    "monai_ssl.data.ReportDataset and ReportCollate give it"
                )


@torch.no_grad()
def _agreement(images: list[Tensor], texts: Tensor) -> dict[str, Tensor]:
    """Retrieval within the batch, and the pairs' cosine, as means over the views."""
    here = torch.arange(len(texts), device=texts.device)
    scores = torch.stack([v @ texts.T for v in images])  # (views, B, B)
    return {
        "image_to_text_accuracy": (scores.argmax(dim=2) == here).float().mean(),
        "text_to_image_accuracy": (scores.argmax(dim=1) == here).float().mean(),
        "positive_similarity": scores.diagonal(dim1=1, dim2=2).mean(),
    }
