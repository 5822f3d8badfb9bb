# SPDX-License-Identifier: Apache-2.0
"""An image encoder and a text encoder whose projections lie in one space."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import normalize

from .encoders import ImageEncoder
from .heads import MLPHead
from .sentence_encoder import SentenceEncoder

__all__ = ["ImageTextModel"]


class ImageTextModel(nn.Module):
    """Two towers and their projectors: one hidden layer with ReLU each, no BatchNorm, nothing shared.

    Zhang et al., *Contrastive Learning of Medical Visual Representations from Paired Images and Text* (ConVIRT), MLHC
    2022, arXiv 2010.00747, section 2.2, equations 1 and 2 and figure 2. Images and sentences whose vectors are near
    each other belong together, so the model finds images by a sentence, and classes by a sentence for each.

    Args:
        image_encoder: images (B, C, \\*spatial) to (B, F), 2D or 3D.
        text_encoder: tokens (B, T) to (B, G).
        embedding_dim: D, 512 in the paper.
        image_hidden: width of the image projector's hidden layer; None: F.
        text_hidden: width of the text projector's; None: G.

    Example:
        >>> import torch
        >>> from monai_ssl.networks import TextTransformer, build_encoder
        >>> model = ImageTextModel(build_encoder("resnet18"), TextTransformer(vocab_size=50), embedding_dim=64)
        >>> images, tokens = torch.rand(2, 1, 32, 32), torch.tensor([[2, 7, 3], [2, 9, 3]])
        >>> similarity = model.embed_images(images) @ model.embed_tokens(tokens, tokens != 0).T
        >>> similarity.shape
        torch.Size([2, 2])
    """

    def __init__(
        self,
        image_encoder: ImageEncoder,
        text_encoder: SentenceEncoder,
        embedding_dim: int = 512,
        image_hidden: int | None = None,
        text_hidden: int | None = None,
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.image_projector = MLPHead(
            image_encoder.num_features, image_hidden or image_encoder.num_features, embedding_dim
        )
        self.text_encoder = text_encoder
        self.text_projector = MLPHead(
            text_encoder.num_features, text_hidden or text_encoder.num_features, embedding_dim
        )
        self.embedding_dim = embedding_dim

    def embed_images(self, x: Tensor) -> Tensor:
        """Return unit vectors (B, D), float32 under autocast too, of images (B, C, \\*spatial)."""
        return self.project_images(self.image_encoder(x))

    def project_images(self, features: Tensor) -> Tensor:
        """Return unit vectors (B, D), float32 under autocast too, of the image encoder's features (B, F)."""
        return normalize(self.image_projector(features).float(), dim=1)

    def embed_tokens(self, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """Return unit vectors (B, D), float32 under autocast too, of sentences (B, T) with their mask (B, T)."""
        return normalize(self.text_projector(self.text_encoder(tokens, token_mask)).float(), dim=1)

    def forward(self, x: Tensor, tokens: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the vectors of images and of sentences, (B, D) each."""
        return self.embed_images(x), self.embed_tokens(tokens, token_mask)
