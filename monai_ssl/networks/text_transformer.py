# SPDX-License-Identifier: Apache-2.0
"""A small transformer for the sentences of reports, trained from nothing together with the image encoder."""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.blocks import TransformerBlock
from torch import Tensor, nn

from .sentence_encoder import SentenceEncoder

__all__ = ["TextTransformer"]


class TextTransformer(SentenceEncoder):
    """Pre-norm transformer over token and learned position embeddings, (B, T) -> (B, F).

    As in BERT, embeddings are normalised and weights start as truncated normal deviates of 0.02; with torch's own start
    the first block's output would outweigh the words.

    Sentences of reports are short and repeat themselves, so that a fraction of BERT's size is enough where there are no
    pretrained weights, or none may be fetched. With 4,096 tokens it has 4.2 million parameters.

    Args:
        vocab_size: of the tokenizer.
        max_length: most tokens of a sentence; longer ones must be cut.
        hidden_size: F.
        num_layers: transformer blocks (MONAI's).
        num_heads: of each block's attention.
        mlp_dim: hidden width of each block's perceptron; None: four times F.
        dropout: in embeddings, attention and perceptrons.
        pooling: see :func:`monai_ssl.networks.pool_tokens`.
        frozen_layers: see :meth:`SentenceEncoder.freeze`; for weights that were loaded from an earlier training.

    Raises:
        ValueError: a number is out of its range.

    Example:
        >>> encoder = TextTransformer(vocab_size=100)
        >>> tokens = torch.tensor([[2, 17, 40, 3], [2, 9, 3, 0]])
        >>> encoder(tokens, tokens != 0).shape
        torch.Size([2, 256])
    """

    def __init__(
        self,
        vocab_size: int,
        max_length: int = 128,
        hidden_size: int = 256,
        num_layers: int = 4,
        num_heads: int = 4,
        mlp_dim: int | None = None,
        dropout: float = 0.1,
        pooling: str = "max",
        frozen_layers: int | None = None,
    ) -> None:
        super().__init__(hidden_size, vocab_size, max_length, pooling)
        sizes = {"vocab_size": vocab_size, "max_length": max_length, "hidden_size": hidden_size}
        sizes |= {"num_layers": num_layers, "num_heads": num_heads}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if hidden_size % num_heads or not 0 <= dropout < 1:
            raise ValueError(
                f"hidden_size must be a multiple of num_heads and dropout in [0, 1), got {hidden_size}, {num_heads} "
                f"and {dropout}"
            )
        mlp_dim = mlp_dim or 4 * hidden_size
        self._built_with = sizes | {"mlp_dim": mlp_dim, "dropout": dropout, "pooling": pooling}
        self.token_embedding = nn.Embedding(vocab_size, hidden_size)
        self.position_embedding = nn.Embedding(max_length, hidden_size)
        self.embedding_norm = nn.LayerNorm(hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            TransformerBlock(hidden_size, mlp_dim, num_heads, dropout, qkv_bias=True) for _ in range(num_layers)
        )
        for layer in self.layers:
            layer.norm_cross_attn = nn.Identity()  # MONAI's is there without cross-attention too, and never learns
        self.norm = nn.LayerNorm(hidden_size)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.trunc_normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        embeddings = [self.token_embedding, self.position_embedding, self.embedding_norm, self.dropout]
        self.freeze(frozen_layers, embeddings, self.layers)

    def token_features(self, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """Return a vector for each token, (B, T, F)."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.dropout(self.embedding_norm(self.token_embedding(tokens) + self.position_embedding(positions)))
        for layer in self.layers:
            x = layer(x, attn_mask=token_mask)
        return self.norm(x)

    def description(self) -> dict[str, Any]:
        """See :meth:`SentenceEncoder.description`."""
        return {"kind": type(self).__name__, **self._built_with, "frozen_layers": self.frozen_layers}
