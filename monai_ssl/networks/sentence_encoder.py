# SPDX-License-Identifier: Apache-2.0
"""What every text encoder offers: one vector for a sentence, and a lower part that may stay as it was."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from .text_pooling import TEXT_POOLINGS, pool_tokens

__all__ = ["SentenceEncoder"]


class SentenceEncoder(nn.Module):
    """Tokens (B, T) to sentence vectors (B, F): a network over tokens, then pooling. A base class.

    A subclass builds its network, calls :meth:`freeze`, and has :meth:`token_features`.

    Frozen layers have no gradient and always compute as in evaluation: their dropout would be noise that no training
    has asked for, and nothing in them can adapt to it.

    Args:
        num_features: F.
        vocab_size: number of different tokens.
        max_length: most tokens of a sentence, T.
        pooling: see :func:`monai_ssl.networks.pool_tokens`.

    Attributes:
        frozen_layers: number of frozen layers above the embeddings, or None where the embeddings learn too.

    Raises:
        ValueError: another pooling.
    """

    kinds: ClassVar[dict[str, type[SentenceEncoder]]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        SentenceEncoder.kinds[cls.__name__] = cls

    def __init__(self, num_features: int, vocab_size: int, max_length: int, pooling: str) -> None:
        super().__init__()
        if pooling not in TEXT_POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(TEXT_POOLINGS)}, got {pooling!r}")
        self.num_features, self.vocab_size, self.max_length, self.pooling = (
            num_features,
            vocab_size,
            max_length,
            pooling,
        )
        self.frozen_layers: int | None = None
        self._frozen: list[nn.Module] = []  # the modules are registered where they belong

    def token_features(self, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """Return a vector for each token, (B, T, F)."""
        raise NotImplementedError

    def description(self) -> dict[str, Any]:
        """Return JSON values from which :meth:`from_description` builds the network again, without its weights."""
        raise NotImplementedError

    @staticmethod
    def from_description(description: dict[str, Any]) -> SentenceEncoder:
        """Build the network that :meth:`description` told of, with random weights.

        Raises:
            ValueError: an unknown kind, or arguments that it does not take.
        """
        arguments = dict(description)
        kind = SentenceEncoder.kinds.get(str(arguments.pop("kind", None)))
        if kind is None:
            raise ValueError(
                f"unknown text encoder {description.get('kind')!r}; known are {', '.join(SentenceEncoder.kinds)}"
            )
        try:
            return kind(**arguments)
        except TypeError as error:
            raise ValueError(f"{kind.__name__} can't be built as described: {error}") from error

    def freeze(self, frozen_layers: int | None, embeddings: list[nn.Module], layers: nn.ModuleList) -> None:
        """Take the gradient from the embeddings and the first layers.

        Args:
            frozen_layers: number of layers; 0 freezes the embeddings alone, None nothing.
            embeddings: below the layers.
            layers: in their order.

        Raises:
            ValueError: there are not so many layers.
        """
        if frozen_layers is None:
            return
        if not 0 <= frozen_layers <= len(layers):
            raise ValueError(f"frozen_layers must be None or from 0 to the {len(layers)} layers, got {frozen_layers}")
        self.frozen_layers = frozen_layers
        self._frozen = [*embeddings, *layers[:frozen_layers]]
        for part in self._frozen:
            part.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> SentenceEncoder:
        """Set the mode of what is not frozen."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def forward(self, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """Return sentence vectors (B, F).

        Args:
            tokens: (B, T) int64, ``T <= max_length``.
            token_mask: (B, T) bool, True for real tokens; what stands elsewhere does not matter.

        Raises:
            ValueError: the shapes differ, or sentences are too long.
        """
        if tokens.ndim != 2 or token_mask.shape != tokens.shape:
            raise ValueError(
                f"tokens and token_mask must have one shape (B, T), got {tuple(tokens.shape)} and "
                f"{tuple(token_mask.shape)}"
            )
        if tokens.shape[1] > self.max_length:
            raise ValueError(
                f"the sentences have up to {tokens.shape[1]} tokens, the text encoder takes {self.max_length}: cut "
                "them with encode(texts, max_length)"
            )
        return pool_tokens(self.token_features(tokens, token_mask), token_mask, self.pooling)

    def extra_repr(self) -> str:
        """Return what ``print`` shows beside the network."""
        return (
            f"vocab_size={self.vocab_size}, num_features={self.num_features}, max_length={self.max_length}, "
            f"pooling={self.pooling!r}, frozen_layers={self.frozen_layers}"
        )
